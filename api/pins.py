"""Pretrained weights pinned at submission: which bytes a job will begin with, and from where they come.

What cannot work is refused here, with the setting that would allow it. The worker fetches; here at most the hub is asked, and a
header is read.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx

from api.checkpoints import choose
from api.dependencies import INT64, Service
from api.problems import ProblemError
from core import hashes
from core.errors import Fault, SpecError
from core.events import validated
from core.places import FETCHED, PinnedWeights, Places
from core.spec import JobSpec, PretrainedSpec
from fetching import header, hub
from fetching.client import Client
from fetching.policy import Policy, RefusedError
from store import events, jobs
from store.errors import NotFound

SOURCE, SHA256 = "/pretrained/source", "/pretrained/sha256"
SHOWN = ("file", "sha256", "bytes", "url", "repository", "revision", "job", "step")
"""What of a pin people see."""
_PATIENCE = 10.0
"""Seconds that a server elsewhere has to answer while somebody waits for a plan."""


def pin(service: Service, spec: JobSpec) -> PinnedWeights | None:
    """The weights that a spec names, as they are now. None where it names none, or official ones: the plan knows those.

    Raises ProblemError at /pretrained.
    """
    if spec.pretrained is None:
        return None
    kind, _, rest = spec.pretrained.source.partition(":")
    try:
        if kind == "job":
            return _as_asked(spec.pretrained, _job(service, spec.pretrained.source))
        if kind == "file" and rest:
            return _as_asked(spec.pretrained, _file(_places(service), rest))
        if kind == "https":
            return _url(service, spec.pretrained)
        if kind == "hf":
            return _as_asked(spec.pretrained, _hub(service, hub.parse(spec.pretrained.source)))
    except RefusedError as error:
        refuse(SOURCE, f"'{spec.pretrained.source}': {error}" if kind == "https" else str(error))
    except SpecError as error:
        raise ProblemError.of_faults("invalid-spec", list(error.faults)) from None
    if kind == "http":
        refuse(SOURCE, "'http' is not allowed; only https is")
    return None


def complete(service: Service, spec: JobSpec, found: PinnedWeights) -> PinnedWeights:
    """Official weights, with what only this process can tell: the hash of the file that is here, or where to fetch it.

    Raises ProblemError at /pretrained.
    """
    asked = spec.pretrained
    if asked is None or asked.source.startswith(("job:", "file:", "https:", "hf:")):
        return found
    try:
        if found.path is not None:
            return _as_asked(asked, _hashed(found, found.path))
        if found.url is None and found.repository is not None:
            name = hub.HubName(found.repository, found.file)
            return _as_asked(asked, _hub(service, name))
        _check(service, found)
    except RefusedError as error:
        refuse(SOURCE, f"{found.file} of '{asked.source}': {error}")
    if asked.sha256 is None:
        return found
    if not asked.sha256.startswith(found.sha256_begins):
        refuse(SHA256, f"the SHA-256 of {found.file} begins with {found.sha256_begins}")
    return found.model_copy(update={"sha256": asked.sha256})


@contextlib.contextmanager
def readable(service: Service, pinned: PinnedWeights | None) -> Iterator[PinnedWeights | None]:
    """The pin as a plan takes it: for safetensors that are still elsewhere, with their header in a file of this moment."""
    url = None if pinned is None else pinned.url
    if pinned is None or url is None or not pinned.cache_names[0].endswith(".safetensors") or _places(service).find(pinned):
        yield pinned
        return
    cache = _places(service).cache
    cache.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="plan-", dir=cache) as folder,
        Client(policy(service), read_seconds=_PATIENCE) as client,
    ):
        path = Path(folder) / "header.safetensors"
        try:
            there = header.stand_in(url, path, client)
        except RefusedError as error:
            refuse(SOURCE, f"{pinned.file}: {error}")
        yield pinned.model_copy(update={"path": path}) if there else pinned


def looked_through(pinned: PinnedWeights) -> PinnedWeights:
    """The pin of a file in which a plan has found every number to be finite: the next plan need not look again, nor the job."""
    if pinned.sha256 is not None:
        hashes.remember_finite(pinned.sha256)
    return pinned.model_copy(update={"finite": True})


def warnings(service: Service, pinned: PinnedWeights | None) -> list[str]:
    """What to know of the checkpoint that a job would begin with."""
    if pinned is None or pinned.job is None:
        return []
    with service.database.read() as session:
        found = choose(events.checkpoints(session, pinned.job), str(pinned.step))
    if found is None or validated(found["figures"]):
        return []
    why = "its epoch was not over, or there is nothing to validate with"
    return [f"the checkpoint of job {pinned.job} at step {pinned.step} was not validated ({why}): no figure says how good it is"]


def view(pinned: dict[str, Any]) -> dict[str, Any] | None:
    """Pins as they are stored (one or none, by its source) as `schemas.Pinned`."""
    for source, one in pinned.items():
        return {"source": source, **{name: one.get(name) for name in SHOWN}}
    return None


def policy(service: Service) -> Policy:
    """What may be fetched."""
    return Policy(**service.settings.policy())


def refuse(pointer: str, message: str) -> NoReturn:
    """Raise the problem of one fault."""
    raise ProblemError.of_faults("invalid-spec", [Fault(pointer, message)])


def _places(service: Service) -> Places:
    return Places.model_validate(service.settings.places())


def _job(service: Service, source: str) -> PinnedWeights:
    """The weights of an earlier job as they lie now: of its best checkpoint for `job:ID`, else of `job:ID@WHICH`."""
    named = re.fullmatch(r"job:([0-9]{1,19})(?:@([0-9]{1,18}|best|last))?", source)
    if named is None or int(named[1]) > INT64:
        refuse(SOURCE, f"'{source}' names no job; write job:ID or job:ID@STEP, with the number that GET /jobs shows")
    job_id = int(named[1])
    try:
        with service.database.read() as session:
            job = jobs.get(session, job_id)
            found = events.checkpoints(session, job_id)
    except NotFound:
        refuse(SOURCE, f"there is no job {job_id}")
    if not found:
        refuse(SOURCE, f"job {job_id} is {job.state} and has no checkpoint yet; its checkpoint.every says when one is written")
    chosen = choose(found, named[2] or "best")
    if chosen is None:
        steps = ", ".join(str(item["step"]) for item in found)
        refuse(SOURCE, f"job {job_id} keeps no checkpoint '{named[2]}'; it keeps those of steps {steps}")
    path = service.settings.data_dir / chosen["path"]
    return PinnedWeights(path=path, sha256=chosen["sha256"], job=job_id, step=chosen["step"])


def _file(places: Places, name: str) -> PinnedWeights:
    path = places.input(name, SOURCE)
    pinned = PinnedWeights(file=name)
    return _hashed(pinned, path) if path.is_file() else pinned  # the plan says what is wrong with it


def _url(service: Service, asked: PretrainedSpec) -> PinnedWeights:
    try:
        url = httpx.URL(asked.source)
    except httpx.InvalidURL as error:
        raise RefusedError(str(error)) from None
    name = url.path.rpartition("/")[2]
    if not url.host or not name.endswith(FETCHED):
        raise RefusedError(f"this names no file of weights; those end in {', '.join(FETCHED)}")
    if asked.sha256 is None:
        refuse(SHA256, "a file from a URL needs its SHA-256 (sha256sum FILE): it is what makes sure that nobody changed it")
    pinned = PinnedWeights(file=name, sha256=asked.sha256, url=asked.source)
    if _places(service).find(pinned) is None:
        _check(service, pinned)
    return pinned


def _hub(service: Service, name: hub.HubName) -> PinnedWeights:
    """A copy below the inputs goes before the hub, unless a revision is asked for: only the hub knows those."""
    file = name.file or "model.safetensors"
    local = PinnedWeights(file=file.rpartition("/")[2], repository=name.repository, local_name=name.local_name(file))
    if name.revision is None and (path := _places(service).find(local)) is not None:
        return _hashed(local, path)
    allowed = policy(service)
    try:
        with Client(allowed, read_seconds=_PATIENCE) as client:
            pinned = hub.look_up(name, client)
    except RefusedError as error:
        if allowed.download:
            raise
        raise RefusedError(f"{name.local_name(file)} is not here, and {error} (or its folder weights/)") from None
    allowed.check_size(pinned.bytes or 0)
    return pinned


def _check(service: Service, pinned: PinnedWeights) -> None:
    """Raises RefusedError where it is known already that the worker could not fetch this."""
    allowed, url = policy(service), httpx.URL(pinned.url or "")
    allowed.check(url)
    with contextlib.suppress(OSError):  # names may be resolved where the worker is, alone
        allowed.addresses(url.host, url.port or 443)


def _hashed(pinned: PinnedWeights, path: Path) -> PinnedWeights:
    sha256 = hashes.sha256_of(path)
    if not sha256.startswith(pinned.sha256_begins):
        raise RefusedError(
            f"{path.name} here has the SHA-256 {sha256[:16]}…, its name says {pinned.sha256_begins}…: it is damaged"
        )
    known = {
        "sha256": sha256,
        "bytes": path.stat().st_size,
        "stamp": hashes.stamp_of(path),
        "finite": hashes.is_finite(sha256),
    }
    return pinned.model_copy(update={"path": None, **known})


def _as_asked(asked: PretrainedSpec, pinned: PinnedWeights) -> PinnedWeights:
    """The pin, if it has the hash that the spec gives."""
    if asked.sha256 is None or asked.sha256 == pinned.sha256:
        return pinned
    if pinned.sha256 is not None:
        refuse(SHA256, f"'{asked.source}' has the SHA-256 {pinned.sha256}")
    return pinned.model_copy(update={"sha256": asked.sha256})
