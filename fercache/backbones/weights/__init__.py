"""Weights of the face CNN: known by name and pulled once, or a file of the user's; kept as safetensors."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fercache.backbones.weights.files import Weights, keep, kept
from fercache.backbones.weights.known_part import KNOWN
from fercache.backbones.weights.own_part import resolve_own
from fercache.errors import WeightsError
from fercache.runtime import atomic_io


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `fercache weights list`; `path` and `sha256` are None where the weights are not there yet."""

    name: str
    source: str
    terms: str
    download_mb: int
    path: Path | None = None
    sha256: str | None = None


def resolve(name: str, folder: Path) -> Weights:
    """Return the weights called `name`, which are there; nothing is downloaded.

    Parameters
    ----------
    name : a name of KNOWN, the path of a .safetensors, .pt or .pth file, or ``onnx:PATH``.
    folder : where weights are kept; a file of the user's is converted into it once.

    Raises
    ------
    WeightsError
        They are not there, or are not weights of this CNN.

    Notes
    -----
    Weights that were kept before are found by a small JSON file, checked against the file's size, without torch.
    Their tensors are checked against the hash whenever they are loaded.
    """
    if name not in KNOWN:
        return resolve_own(name, folder, tuple(KNOWN))
    found = kept(name, folder)
    if found is None:
        raise WeightsError(f"the weights {name} are not there", where=folder,
                           hint=f"run `fercache weights pull {name}` (downloads {KNOWN[name].download_mb} MB)")
    return found


def ensure(name: str, folder: Path) -> Weights:
    """Return the weights called `name`; known ones that are not there yet are pulled.

    Raises
    ------
    WeightsError
        As `resolve` and `pull`.
    """
    return pull(name, folder) if name in KNOWN else resolve(name, folder)


def pull(name: str, folder: Path) -> Weights:
    """Return the known weights called `name`, downloaded and converted unless they are there.

    Raises
    ------
    WeightsError
        Unknown name; or the download was refused, cut off or altered, and nothing was left behind.
    InputError
        The folder cannot be written.

    Notes
    -----
    Of two processes that pull at once, one downloads and the other waits for it.
    """
    if name not in KNOWN:
        raise WeightsError(f"no weights to pull are called {name!r}", hint=f"known are {', '.join(KNOWN)}")
    found = kept(name, folder)
    if found is not None:
        return found
    with ExitStack() as stack:
        try:
            stack.enter_context(atomic_io.lock(folder / f".{name}.lock", wait=True))
        except OSError as error:
            raise atomic_io.not_writable(folder, error) from error
        known = KNOWN[name]
        return kept(name, folder) or keep(name, known.make(folder), folder, source=known.source, terms=known.terms)


def by_sha256(sha256: str, folder: Path) -> Weights:
    """Return the weights of that hash, as a store's settings name them, out of those kept in `folder`.

    Raises
    ------
    WeightsError
        They are not there.
    """
    for note in sorted(folder.glob("[!.]*.json")):
        found = kept(note.stem if note.stem in KNOWN else "custom", folder, note.stem)
        if found is not None and found.sha256 == sha256:
            return found
    raise WeightsError(f"no weights with the sha256 {sha256[:12]} are there", where=folder,
                       hint="pull those that the features were made with (`fercache weights pull NAME`), or name your "
                            "own file once with `fercache extract --weights PATH`")


def listing(folder: Path) -> list[Row]:
    """Return a row for each of KNOWN: what it is, whether it is there, what it would cost to pull."""
    rows = []
    for name, known in KNOWN.items():
        found = kept(name, folder)
        rows.append(Row(name=name, source=known.source, terms=known.terms, download_mb=known.download_mb,
                        path=found.path if found else None, sha256=found.sha256 if found else None))
    return rows
