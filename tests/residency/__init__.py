"""The harnesses of the residency core: a world with its own bytes, random events, traffic, cases and seeded faults."""
