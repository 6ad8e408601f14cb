"""Training on several devices and machines: what each process reads, and how they end together.

Keras' `DataParallel` under JAX does the work: every process runs the same step over all devices,
and an array of the global batch lies on them in shares, in the order of the processes. Sums over
the batch are therefore those of the global batch: of losses, metrics, batch normalisation, centres.
"""

import atexit
import contextlib
import dataclasses
import itertools
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras

from tiffin.export.errors import InputError

_HEARTBEAT = 30  # seconds after which JAX' runtime ends the others of a silent process
_SILENT = 10  # seconds without a sign of life, of which each process gives one a second
_FAREWELL = 3  # seconds in which the others read why
_START = 300  # seconds in which all processes have to be there
_LONG = 24 * 3600 * 1000  # milliseconds
_ENDED, _ALIVE = "tiffin/ended/", "tiffin/alive/"
_RESUME = "What whole epochs left is kept: go on with --resume, and as many processes as you like."


@dataclasses.dataclass
class Place:
    """Where a process stands in a training.

    Attributes:
        index, count: of this process, and how many there are.
        devices: of all processes together.
        folder: where a process that does not lead writes what nobody keeps.
        strategy: TensorFlow's, where that backend has several devices.
    """

    index: int = 0
    count: int = 1
    devices: int = 1
    folder: Path | None = None
    strategy: object = None
    turns: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def rows(self, batch: int) -> slice:
        """Return which rows of a global batch this process reads."""
        size = batch // self.count
        return slice(self.index * size, (self.index + 1) * size)

    def whole(self, number: int, least: int = 1) -> int:
        """Return the largest number up to `number` that divides among the devices.

        Raises:
            InputError: it would be below `least`.
        """
        even = number // self.devices * self.devices
        if even < least:
            raise InputError(
                f"{number} examples do not divide among {self.devices} devices: take fewer, or "
                "more data."
            )
        return even

    def check_batch(self, batch_size: int) -> None:
        """Refuse a batch that the devices cannot share evenly."""
        if batch_size % self.devices:
            below = batch_size // self.devices * self.devices
            near = [str(n) for n in (below, below + self.devices) if n]
            raise InputError(
                f"--batch-size {batch_size} does not divide among {self.devices} devices: take "
                f"{' or '.join(near)}."
            )

    def scope(self):
        """Return a context in which networks are made and compiled."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def _key(self) -> str:
        """Return a name that all processes give to the same call, as they make the same ones."""
        return f"tiffin/turn/{next(self.turns)}"

    def agreed(self, text: str) -> str:
        """Return what the leading process says, in all of them.

        Args:
            text: of the leading process; that of the others does not matter.
        """
        if self.count == 1:
            return text
        key = self._key()
        if self.leads:
            _client().key_value_set(key, text)
            return text
        return _client().blocking_key_value_get(key, _LONG)

    def require_same(self, name: str, text: str) -> None:
        """Refuse to go on where this process says something else than the leading one.

        Raises:
            InputError: it does.
        """
        leading = self.agreed(text)
        if leading != text:
            raise InputError(
                f"The {name} is not that of process 0: here '{text}', there '{leading}'. All "
                "processes take the same command and see the same files."
            )

    def wait(self) -> None:
        """Wait until all processes are here, however long the leading one takes."""
        if self.count > 1:
            _client().wait_at_barrier(self._key(), _LONG)


ALONE = Place()
_joined: list[Place] = []


def several() -> bool:
    """Whether this process is one of several that train together."""
    return any(place.count > 1 for place in _joined)


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for on the command line; None: the environment's."""

    devices: int | None = None
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def completed(self) -> "Request":
        """Return the request with what torchrun's, SLURM's and Kubernetes' variables add to it.

        Raises:
            InputError: numbers out of range, or some of those that belong together are missing.
        """
        env = os.environ
        found = {}
        if env.get("SLURM_STEP_NODELIST") and int(env.get("SLURM_NTASKS", "1")) > 1:
            found = {"processes": env["SLURM_NTASKS"], "process": env.get("SLURM_PROCID")}
            found["coordinator"] = _slurm_address()
        elif {"MASTER_ADDR", "WORLD_SIZE", "RANK"} <= env.keys() and int(env["WORLD_SIZE"]) > 1:
            found = {"processes": env["WORLD_SIZE"], "process": env["RANK"]}
            found["coordinator"] = f"{env['MASTER_ADDR']}:{env.get('MASTER_PORT', '29500')}"
        if found.get("process") is None:
            found["process"] = env.get("JOB_COMPLETION_INDEX")
        for name, value in found.items():
            own = getattr(self, name)
            if own is None and value is not None:
                own = value if name == "coordinator" else int(value)
            found[name] = own
        request = dataclasses.replace(self, **found)
        if request.coordinator is None and request.processes in (None, 1):
            if self.process not in (None, 0):
                raise InputError("--process goes with --coordinator HOST:PORT and --processes N.")
            return dataclasses.replace(request, processes=1, process=0)
        for name in ("coordinator", "processes", "process"):
            if getattr(request, name) is None:
                raise InputError(
                    f"--{name} is missing: a training of several processes takes --coordinator "
                    "HOST:PORT (of process 0), --processes N and --process I, from 0."
                )
        if not 0 <= request.process < request.processes:
            raise InputError(
                f"--process {request.process}: with --processes {request.processes} it is from 0 "
                f"to {request.processes - 1}."
            )
        host, _, port = request.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(
                f"--coordinator {request.coordinator}: write HOST:PORT, such as 10.0.0.1:8476."
            )
        return request


def _slurm_address() -> str:
    """Return the first host of a SLURM step, and a port that its job alone has, as JAX does."""
    first, _, rest = os.environ["SLURM_STEP_NODELIST"].partition("[")
    host = first.partition(",")[0]
    if rest and "," not in first:
        host += rest.replace("-", ",").replace("]", ",").partition(",")[0]
    return f"{host}:{int(os.environ['SLURM_JOB_ID']) % 4096 + 61440}"


def _own_device() -> list[int] | None:
    """Return the accelerator that is for this process, where several share a machine."""
    env = os.environ
    here = env.get("LOCAL_WORLD_SIZE") or env.get("SLURM_STEP_TASKS_PER_NODE", "1")
    number = env.get("LOCAL_RANK", env.get("SLURM_LOCALID"))
    shared = int(re.match(r"\d+", here)[0]) > 1
    return [int(number)] if shared and number is not None else None


@contextlib.contextmanager
def join(request: Request) -> Iterator[Place]:
    """Take part in a training, for the time of a block.

    Yields:
        Where this process stands.

    Raises:
        InputError: what was asked for is not there, or another process has ended.
    """
    if _joined:  # a training inside one of several processes: each has its own
        yield ALONE
        return
    asked = request.completed()
    if asked.devices is not None and asked.devices < 1:
        raise InputError(f"--devices {asked.devices}: it must be at least 1.")
    backend = keras.backend.backend()
    if asked.processes == 1 and asked.devices in (None, 1):
        yield ALONE
    elif backend == "jax":
        yield from _with_jax(asked)
    elif asked.processes > 1 or backend != "tensorflow":
        what = "processes" if asked.processes > 1 else "devices"
        raise InputError(
            f"Several {what} train under JAX, not under {backend}: set KERAS_BACKEND=jax."
        )
    else:
        yield _mirrored(asked.devices)


def _mirrored(devices: int) -> Place:
    import tensorflow as tf

    found = tf.config.list_logical_devices("GPU")
    if len(found) < devices:
        raise InputError(
            f"--devices {devices}: TensorFlow spreads a training over GPUs, and finds {len(found)} "
            "here. Under JAX it may be processors, too: set KERAS_BACKEND=jax."
        )
    strategy = tf.distribute.MirroredStrategy([device.name for device in found[:devices]])
    return Place(devices=devices, strategy=strategy)


def _with_jax(asked: Request) -> Iterator[Place]:
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    if asked.devices and "xla_force_host_platform_device_count" not in flags:
        # Of use where there is no accelerator: so many parts of the processor.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", asked.devices)
    if asked.processes > 1:
        _connect(asked)
    place = Place(asked.process, asked.processes)
    try:
        chosen = _devices(asked)
        place.devices = len(chosen)
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=chosen, auto_shard_dataset=False)
        )
        _joined.append(place)
        said = f"Process {place.index} of {place.count}, " if place.count > 1 else ""
        print(f"{said}{place.devices // place.count} of {place.devices} devices")
        with tempfile.TemporaryDirectory() as folder:
            place.folder = None if place.leads else Path(folder)
            yield place
        place.wait()
    except BaseException as error:
        if place.count > 1:
            _end(place, error)
        raise
    finally:
        keras.distribution.set_distribution(None)
        _joined.clear()
    if place.count > 1:
        _watchers.pop().stop()
        jax.distributed.shutdown()
        _on_abort(None)


def _devices(asked: Request) -> list[str]:
    """Return the names of all devices to train on, in the order of the processes."""
    import jax

    local = jax.local_devices()
    count = asked.devices or len(local)
    found = [jax.local_devices(process_index=index)[:count] for index in range(asked.processes)]
    if count > len(local):
        raise InputError(
            f"--devices {count}: JAX finds {len(local)} {local[0].platform} here; ask for fewer."
        )
    if any(len(devices) != count for devices in found):
        raise InputError(f"Not every process has {count} devices: say with --devices how many.")
    return [f"{d.platform}:{d.id}" for devices in found for d in devices]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Make and run networks on one device of this process, inside a training of several."""
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def _client():
    from jax._src import distributed

    return distributed.global_state.client


def _connect(asked: Request) -> None:
    import jax

    apart = (
        f"Process {asked.process} of {asked.processes} did not get together with the others at "
        f"{asked.coordinator}: start all of them within {_START // 60} minutes, with the address "
        "of process 0, and a port that is free there and open to the others."
    )
    _on_abort(lambda: apart)  # C++ ends a process that waits in vain
    # Of processors; accelerators bring their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            asked.coordinator,
            asked.processes,
            asked.process,
            _own_device(),
            cluster_detection_method="deactivate",
            initialization_timeout=_START,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{apart} JAX says: {str(error).splitlines()[0]}") from error
    watcher = _Watcher(asked)
    _watchers.append(watcher)
    # A process that JAX finds alone is ended by its runtime, in C++, with nothing raised here.
    unseen = [0] if asked.process else []
    _on_abort(lambda: watcher.obituary(watcher.silent() or unseen))


def _on_abort(message: Callable[[], str] | None) -> None:
    """Say what has happened, when C++ ends this process; None: no longer."""
    import ctypes

    if message is None:
        ctypes.CDLL(None).signal(int(signal.SIGABRT), None)
        return

    def end(number: int) -> None:
        os.write(2, f"\nerror: {message()}\n".encode())
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    _kept.append(handler)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


_kept: list[Callable] = []  # what C calls must not be collected


class _Watcher(threading.Thread):
    """Tell the others that this process lives, and end it when another one has said that it ends.

    Args:
        asked: for this process.
    """

    def __init__(self, asked: Request):
        super().__init__(daemon=True)
        self.process, self.done = asked.process, threading.Event()
        others = (i for i in range(asked.processes) if i != asked.process)
        self.seen = dict.fromkeys(others, ("", time.monotonic()))  # the last sign, and when
        self.hosts = {0: asked.coordinator.rpartition(":")[0]}
        self.start()

    def run(self):
        client, host = _client(), socket.gethostname()
        for turn in itertools.count():
            try:
                client.key_value_set(f"{_ALIVE}{self.process}", f"{turn} {host}", True)
                signs, ends = map(client.key_value_dir_get, (_ALIVE, _ENDED))
            except Exception:  # of many kinds, when process 0, where the service is, has gone
                return
            for index, sign in _by_process(signs):
                if index in self.seen and sign != self.seen[index][0]:
                    self.seen[index] = sign, time.monotonic()
                    self.hosts[index] = sign.partition(" ")[2]
            for index, why in _by_process(ends):
                if index != self.process and not _leaving.is_set():
                    _leaving.set()
                    said = f"{self.names([index])} has ended: {why} {_RESUME}"
                    os.write(2, f"\nerror: {said}\n".encode())
                    time.sleep(_FAREWELL + 1)  # first goes who has ended first
                    os._exit(1)
            if self.done.wait(1):
                return

    def stop(self) -> None:
        """Return when it asks no more: C++ cannot bear that Python ends inside of it."""
        self.done.set()
        self.join()

    def silent(self, since: float | None = None) -> list[int]:
        """Return the processes that have given no sign of life.

        Args:
            since: a time of `time.monotonic()`; None: for some seconds.
        """
        since = time.monotonic() - _SILENT if since is None else since
        found = [index for index, (_, when) in self.seen.items() if when < since]
        # Without process 0, where all signs are read, nobody knows of the rest.
        return found[:1] if found[:1] == [0] else found

    def names(self, processes: list[int]) -> str:
        hosts = (f" on {self.hosts[i]}" if i in self.hosts else "" for i in processes)
        return " and ".join(f"Process {i}{host}" for i, host in zip(processes, hosts, strict=True))

    def obituary(self, processes: list[int]) -> str:
        """Return what to say of processes that live no more; none: of one that is not known."""
        who = self.names(processes) or "A process, which the lines above name,"
        verb = "answer" if len(processes) > 1 else "answers"
        return f"{who} no longer {verb}: dead, or cut off. {_RESUME}"


def _by_process(entries: list[tuple[str, str]]) -> list[tuple[int, str]]:
    return [(int(name.rpartition("/")[2]), value) for name, value in entries]


_leaving = threading.Event()
_watchers: list[_Watcher] = []


def _end(place: Place, error: BaseException) -> None:
    """Let the others end, too, when this process ends early; say so if another one did first.

    Raises:
        InputError: another process has died.
    """
    if _leaving.is_set():
        time.sleep(2 * _FAREWELL)  # the thread that watches ends this process
    _leaving.set()
    told = isinstance(error, InputError | KeyboardInterrupt)
    if not told and (missing := _missing()):
        _leave(2)
        raise InputError(_watchers[0].obituary(missing)) from error
    why = str(error) if told else f"{type(error).__name__}: {error}"
    why = why or "It was interrupted."
    _on_abort(lambda: why)  # as the others may be faster to end
    with contextlib.suppress(Exception):
        _client().key_value_set(f"{_ENDED}{place.index}", why)
    time.sleep(_FAREWELL)  # for the others to read it
    _leave(2 if isinstance(error, InputError) else 130 if told else 1)


def _leave(status: int) -> None:
    """Let Python end without JAX' own farewell, which would wait for those who are gone."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(end)


def _missing() -> list[int]:
    """Return the processes that live no more."""
    begun = time.monotonic()
    for _ in range(2 * _SILENT):
        time.sleep(0.5)
        # A sign seen shortly after the beginning may have been given before.
        missing = _watchers[0].silent(begun + 2)
        if not missing:
            break
    return missing
