"""The words of the claims sample's template language."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split("|"))


PEOPLE = _words("""
    baker doctor farmer judge mayor miner nurse painter pilot sailor singer teacher writer lawyer hunter chef Anna
    David Elena Hugo Karim Lucy Marco Nadia Oscar Priya
""")
BODIES = _words("""
    city company council museum hospital library union bank school ministry club church
""")
GROUPS = _words("""
    workers students neighbours scientists soldiers tourists villagers engineers
""")
SYLLABLES = _words("""
    ba co di fa go ha ke li mo na po ra se ti vo zu
""")
VERBS = _words("""
    bought sold built painted repaired visited closed opened cleaned moved lost found stole hid burned wrapped
    copied counted designed drew guarded inherited measured ordered photographed polished praised removed rented
    replaced saved shipped studied tested washed
""")
OBJECTS = _words("""
    bridge boat mill tower garden fence engine clock statue well barn lamp mirror piano road tunnel wall window
    wagon map letter poem ring carpet kettle ladder violin bell bicycle basket anchor apple orchard umbrella oven
    island
""")
ADJECTIVES = _words("""
    old new small large red green broken empty famous heavy narrow quiet strange wooden golden ancient
""")
DESCRIPTIONS = _words("""
    old new small large young famous local quiet tired busy
""")
ADJUNCTS = _phrases("""
    in May | in June | in winter | last week | last year | on Monday | on Friday | two years ago | near the harbour
    | by the river | before the storm | after the war | at night | in the valley
""")
PREFIXES = _phrases("""
    Experts say that | According to the newspaper, | Critics argue that | It is reported that | The report notes
    that | Many believe that | As far as we know, | Sources claim that | In my opinion, | To everyone's surprise, |
    It seems that | Witnesses recall that
""")
SUFFIXES = _phrases("""
    the police said | according to the radio | I think | or so we heard | as everybody knows | a witness told us
""")
ASIDES = _phrases("""
    as we all know | to our surprise | it is said | sources say | in short | by all accounts
""")
HEDGES = _words("""
    probably reportedly apparently allegedly surely perhaps certainly supposedly
""")
UNCLAIMED = _phrases("""
    Nobody knows whether {}, but {}. | It is not true that {}; in fact, {}. | We do not know if {}, but {}. | Some
    people doubt that {}, but {}.
""")
