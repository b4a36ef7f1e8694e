"""Reading what a table prints: the run in a folder and its scores, if nothing contradicts the settings that they must have.

Every reader of scores (tables, pages, figures, claims, choices, `sfrik status`, `make tableN`) goes through these functions.
Records without settings, as some earlier releases wrote them, contradict nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfrik.runs.cached import cached_header, cached_provenance, header_error
from sfrik.runs.data import split_differences
from sfrik.runs.records import RunSettings, Score
from sfrik.settings import Settings
from sfrik.settings.recorded import hash_of
from sfrik.system.files import path_exists
from sfrik.system.records import read_record

__all__ = ["altered_record", "run_problem", "score_problem"]

BACKBONE = "backbone.safetensors"


def run_problem(folder: Path, settings: Settings) -> str:
    """Why the run in a folder is not one with these settings of pretraining; empty if nothing contradicts them.

    Raises:
        SfrikError: settings.json is broken.
    """
    record, weights, digest = folder / "settings.json", folder / BACKBONE, settings.hash()
    if path_exists(record):
        recorded = read_record(record, RunSettings)
        if altered := altered_record(recorded["settings"], recorded["hash"]):
            return f"settings.json {altered}"
        if differences := settings.differences(recorded["settings"]):
            return f"its settings are not the recipe's ({differences})"
        digest = recorded["hash"]
    if weights.is_file() and not header_error(weights):
        trained = cached_header(weights).get("settings")
        if trained and trained != digest:
            return f"its weights were trained with other settings (hash {trained} -> {digest})"
    return ""


def score_problem(
    folder: Path,
    name: str,
    score: dict[str, Any],
    settings: Settings,
    weights_sha256: str | None,
    data: Mapping[str, Any] | None = None,
) -> str:
    """Why a score is not one with these settings of the weights in its folder; empty if nothing contradicts it.

    Args:
        name: Of the score's file, without .json.
        score: The content of the file.
        weights_sha256: SHA-256 of the weights in the folder; the one in provenance.json when None.
        data: The images that it must have been measured on, by split; not compared when None, nor with a score that does not
            record them.
    """
    recorded, digest = score.get("settings"), score.get("settings_hash")
    if recorded is not None:
        if altered := altered_record(recorded, digest):
            return f"{name}.json {altered}"
        if differences := settings.differences(recorded):
            return f"{name}.json was measured with other settings ({differences})"
    elif digest and digest != settings.hash():
        return f"{name}.json was measured with other settings (hash {digest} -> {settings.hash()})"
    weights = weights_sha256 or cached_provenance(folder / "provenance.json").get("weights", {}).get(BACKBONE)
    measured = score.get("backbone_sha256")
    if weights and measured and measured != weights:
        return f"{name}.json was measured on other weights (SHA-256 {measured[:12]} -> {weights[:12]})"
    if data is not None and (differences := split_differences(score.get("data", {}), data)):
        return f"{name}.json was measured on other images ({differences})"
    return _head_problem(folder, name, score)


def altered_record(settings: dict[str, Any], digest: str | None) -> str:
    """Whether recorded settings have another hash than the recorded one, in words; empty if they do not."""
    return "was edited: its settings do not have the hash that it records" if digest and digest != hash_of(settings) else ""


def _head_problem(folder: Path, name: str, score: dict[str, Any]) -> str:
    """A score of a saved head (`only_inference`) goes with the score that the head was saved with."""
    head = str(score.get("head") or "")
    source = folder / f"{head.removeprefix('head_').removesuffix('.safetensors')}.json"
    if not head or source.stem == name or not path_exists(source):
        return ""
    saved = read_record(source, Score).get("head_sha256")
    return f"{name}.json is of another head than {source.name}" if saved and saved != score.get("head_sha256") else ""
