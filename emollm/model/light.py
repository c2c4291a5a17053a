"""Light folders: only the trained weights, and a reference to the foundations with the digests of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from emollm.config import FOUNDATION_PARTS, FoundationConfig, foundation_digest
from emollm.model.foundations import FoundationError

TRAINED_FILE = "trained.safetensors"


def foundation_reference(foundation: FoundationConfig) -> dict[str, Any]:
    """Where the foundations are and what their files are, for the config of a light folder."""
    reference: dict[str, Any] = {"family": foundation.family, "digests": {}}
    for part in FOUNDATION_PARTS:
        path = getattr(foundation, part)
        if not path:
            continue
        reference[part] = str(Path(path).resolve()) if Path(path).is_dir() else path
        reference["digests"][part] = foundation_digest(path)
    return reference


def find_foundation(part: str, path: str, digest: str) -> str:
    """`path` if it is the foundation with this digest. Raises FoundationError otherwise."""
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise FoundationError(
            f"{path}: the {part} foundation of this model is not there; "
            f"pass {part}=FOLDER to from_pretrained, or export the model with all its weights"
        )
    found = foundation_digest(path)
    if found != digest:
        raise FoundationError(
            f"{path}: this is not the {part} foundation the model was trained on "
            f"(its files have digest {found[:12]}, the model wants {digest[:12]})"
        )
    return path


def load_trained(model: Any, path: Path) -> None:
    """Copy the trained weights in, every one of them and no other."""
    state = load_file(path)
    wanted = model.trained_names()
    if set(state) != wanted:
        missing, extra = sorted(wanted - set(state)), sorted(set(state) - wanted)
        raise ValueError(
            f"{path}: does not fit the config beside it: missing {missing[:3]}, unexpected {extra[:3]}"
        )
    model.load_state_dict(state, strict=False)
