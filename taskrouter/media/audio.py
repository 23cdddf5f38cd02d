"""Audio in: whatever holds a sound becomes one channel of float32 samples at the rate the model wants.

A file that ends before its own header says it does is refused: half a recording gives a confident answer about the
wrong thing. ``complete.py`` knows what each container declares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskrouter.errors import BadInput, MediaTooLarge
from taskrouter.media.complete import declared_seconds, missing_tail
from taskrouter.media.limits import MediaLimits, Opened, opened
from taskrouter.media.need import need

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Play lists and the like make the demuxer open other files and URLs: of this list, only real containers.
_CONTAINERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,nut,ogg,"
    "tak,tta,voc,w64,wav,wv"
)
# Encoders pad the first and the last packet, so what is decoded is never exactly what is declared.
_SLACK_S = 0.1
_MOST_CHANNELS = 32


def load_audio(
    source: Any, limits: MediaLimits | None = None, *, sampling_rate: int, source_rate: int | None = None
) -> NDArray[np.float32]:
    """Read a sound and return it as mono float32 samples at ``sampling_rate``, within about -1 and 1.

    ``source`` is a path, bytes, a binary file object, a ``data:`` URL (any codec that PyAV reads, also the sound of a
    video), or an array (samples, or channels × samples, or samples × channels; float, or signed integers of their full
    range). ``source_rate`` is an array's rate, by default ``sampling_rate``; files bring their own. Channels are
    averaged. Blocks while it reads and decodes. Raises ``BadInput`` for what is no sound, is damaged or ends before its
    header says, ``MediaTooLarge`` for what is over a limit, ``MissingDependency`` where PyAV isn't installed.
    """
    need("av", "numpy", what="audio")
    limits = limits or MediaLimits()
    if hasattr(source, "__array__"):
        samples = _from_array(source, limits, sampling_rate, sampling_rate if source_rate is None else source_rate)
        name = "the audio array"
    else:
        with opened(source, limits, what="audio") as file:
            samples, name = _decode(file, limits, sampling_rate), file.name
    return _checked(samples, name)


def _checked(samples: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    import numpy as np

    if not samples.size:
        raise BadInput(f"{name} holds no sound: it has no samples.")
    if not np.isfinite(samples).all():
        raise BadInput(f"{name} holds samples that are no numbers (NaN or infinite): record or convert it again.")
    return samples


def _decode(source: Opened, limits: MediaLimits, rate: int) -> NDArray[np.float32]:
    import av

    if source.file.read(4) == b"RIFX":
        raise BadInput(f"{source.name} is a big-endian WAV file, which decodes to noise: convert it to WAV or FLAC.")
    source.file.seek(0)
    try:
        # Titles and the like come in any encoding, and are of no interest here.
        with av.open(source.file, metadata_errors="replace", options={"format_whitelist": _CONTAINERS}) as container:
            if not container.streams.audio:
                raise BadInput(f"{source.name} has no sound in it: give an audio file, or a video with sound.")
            if container.duration:
                _check_seconds(container.duration / av.time_base - _SLACK_S, source.name, limits)
            samples, seconds, damage = _decode_stream(container, source.name, limits, rate)
            declared = declared_seconds(container, source.file)
            form = container.format.name
    except BadInput:
        raise
    except (av.error.FFmpegError, EOFError, ValueError, OverflowError) as error:
        raise BadInput(
            f"{source.name} can't be decoded as audio, or its beginning is damaged ({_reason(error)}): "
            "give a WAV, FLAC, MP3, OGG or M4A file."
        ) from error
    tail = missing_tail(source.file, source.size, form)
    if damage or tail or (declared is not None and seconds < declared - _SLACK_S):
        of = f" of {declared:.1f}" if declared is not None else ""
        why = tail or (_reason(damage) if damage else "the file ends there")
        raise BadInput(
            f"{source.name} is cut short or damaged: {seconds:.1f}{of} seconds could be read ({why}). "
            "Record, upload or download it again."
        ) from damage
    return samples


def _decode_stream(
    container: Any, name: str, limits: MediaLimits, rate: int
) -> tuple[NDArray[np.float32], float, Exception | None]:
    """Decode the first sound track; returns its samples, the seconds read, and what stopped it early, if anything."""
    import av

    mono = _Mono(rate)
    heard, seconds, damage = 0, 0.0, None
    try:
        for frame in container.decode(container.streams.audio[0]):
            heard += frame.samples
            seconds = heard / frame.sample_rate
            _check_seconds(seconds - _SLACK_S, name, limits)
            mono.take(frame)
        mono.take(None)
    except MediaTooLarge:
        raise
    except (av.error.FFmpegError, EOFError, ValueError, ArithmeticError) as error:
        damage = error
    return mono.sound(), seconds, damage


class _Mono:
    """Decoded frames, of whatever form, become the samples of one channel at one rate."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._form: tuple[str, str, int] | None = None
        self._resampler: Any = None
        # Grown in place: pieces to be joined at the end would be there twice, which counts for an hour of sound.
        self._samples = bytearray()

    def take(self, frame: Any | None) -> None:
        """One frame more, or the end. A broadcast may go from mono to stereo and back: each form has a resampler."""
        import av

        if frame is not None and self._form != (form := (frame.layout.name, frame.format.name, frame.sample_rate)):
            self._push(None)
            # Not to "mono" there: libswresample adds channels at 0.7 each, and a loud stereo file would clip. Nor to
            # planes ("fltp"): PyAV reads past the list of them where there are 8 or more.
            self._form, self._resampler = form, av.AudioResampler(format="flt", rate=self._rate)
        self._push(frame)

    def _push(self, frame: Any | None) -> None:
        for piece in self._resampler.resample(frame) if self._resampler is not None else ():
            channels = piece.to_ndarray().reshape(piece.samples, -1)
            self._samples += channels.mean(axis=1).tobytes()

    def sound(self) -> NDArray[np.float32]:
        import numpy as np

        return np.frombuffer(self._samples, np.float32)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _check_seconds(seconds: float, name: str, limits: MediaLimits) -> None:
    if seconds > limits.max_seconds:
        raise MediaTooLarge(
            f"{name} lasts longer than the {limits.max_seconds:g} seconds that media.max_seconds allows: "
            "cut it into pieces, or raise the limit."
        )


def _from_array(source: Any, limits: MediaLimits, rate: int, source_rate: int) -> NDArray[np.float32]:
    import numpy as np

    if source_rate <= 0:
        raise BadInput(f"a sampling rate of {source_rate} makes no sense: give the array's samples per second.")
    try:
        samples = np.asarray(source)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"{type(source).__name__} can't be read as an array of samples: {error}.") from error
    if samples.ndim != 1 and not (samples.ndim == 2 and min(samples.shape) <= _MOST_CHANNELS):
        shape = "×".join(map(str, samples.shape)) or "no"
        raise BadInput(f"an array of shape {shape} is no sound: give samples, or channels × samples.")
    _check_seconds(max(samples.shape) / source_rate, "the audio array", limits)
    if samples.ndim == 2:
        samples = np.asarray(_as_float(samples).mean(axis=int(np.argmin(samples.shape)), dtype=np.float32))
    sound = np.ascontiguousarray(_as_float(samples))
    return sound if source_rate == rate or not sound.size else _resample(sound, source_rate, rate)


def _as_float(samples: NDArray[Any]) -> NDArray[np.float32]:
    import numpy as np

    if np.issubdtype(samples.dtype, np.signedinteger):
        full = float(np.iinfo(samples.dtype).max) + 1
        # Float32 holds 16 bits exactly; more are divided before they are rounded, not after.
        precise = np.dtype(np.float32 if samples.dtype.itemsize <= 2 else np.float64)
        scaled: NDArray[np.float32] = np.divide(samples, full, dtype=precise).astype(np.float32, copy=False)
        return scaled
    if np.issubdtype(samples.dtype, np.floating):
        return samples.astype(np.float32)
    raise BadInput(f"a sound of {samples.dtype} isn't understood: give float samples from -1 to 1, or signed integers.")


def _resample(sound: NDArray[np.float32], source_rate: int, rate: int) -> NDArray[np.float32]:
    import av
    import numpy as np

    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    frame = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
    frame.sample_rate = source_rate
    pieces = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([piece.to_ndarray()[0] for piece in pieces])
