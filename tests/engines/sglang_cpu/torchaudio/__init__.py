"""Stands in for torchaudio, which SGLang imports where it decodes a sound and uses only to resample one."""

from __future__ import annotations


class functional:
    """``torchaudio.functional``: nothing of it can be called."""

    @staticmethod
    def resample(*_: object, **__: object) -> object:
        raise NotImplementedError("torchaudio.functional.resample is a stand-in: send sounds of the model's own rate")
