"""Names of parts in specs, and the parts that the tables of a spec describe.

Importing user-defined parts runs their code, so only a spec given by the user may name them, not a
spec read from a store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import entry_points
from typing import Any, NamedTuple, cast

from pydantic import BaseModel, ValidationError

from uturn.core.checks import expect
from uturn.core.contracts import undoes
from uturn.core.errors import noted
from uturn.core.imports import import_object, is_import_path
from uturn.core.inputs import Table, plain
from uturn.core.messages import one_line
from uturn.core.own_parts import DOCS, check_class, check_own, is_own
from uturn.core.protocols import BASES, Backward, Corruption, Part, Probe, Source
from uturn.core.tools import installed_tools, own_tools

READINGS = "readings"
"""Type of the parts of a run whose readings were made elsewhere; no part has it."""
GROUP = "uturn.parts"
"""Entry points of installed packages: {`type` in a spec: import path of the class}."""
ROLES = ("source", "corruption", "backward")

PARTS: dict[str, dict[str, str]] = {
    "source": {
        "rhm": "uturn.sources.strings:RHMSource",
        "filtered_rhm": "uturn.sources.strings:FilteredRHMSource",
        "grammar": "uturn.sources.strings:GrammarSource",
        "hmm": "uturn.sources.strings:HiddenMarkovSource",
        "fashion_mnist": "uturn.sources.images:FashionMNISTSource",
        "images": "uturn.sources.images:ImageFolderSource",
        "array": "uturn.sources.images:ArraySource",
        "generated": "uturn.sources.generated:GeneratedSource",
        "gaussian_mixture": "uturn.sources.vectors:GaussianMixtureSource",
        "gaussian_field": "uturn.sources.vectors:GaussianFieldSource",
        "tokens": "uturn.sources.tokens:TokenSource",
    },
    "corruption": {
        "diffusion": "uturn.corruption.diffusion:Diffusion",
        "gaussian": "uturn.corruption.gaussian:Gaussian",
        "masking": "uturn.corruption.masking:Masking",
        "uniform": "uturn.corruption.uniform:UniformReplacement",
        "epsilon": "uturn.corruption.strings:EpsilonBelief",
        "recorded": "uturn.corruption.recorded:Recorded",
    },
    "backward": {
        "exact": "uturn.backward.denoiser:ExactPosterior",
        "denoiser": "uturn.backward.denoiser:StringDenoiser",
        "score": "uturn.backward.score_model:StringDiffusion",
        "diffusion": "uturn.backward.diffusion:DiffusionModel",
        "language": "uturn.backward.language:LanguageDenoiser",
        "recorded": "uturn.backward.recorded:RecordedImages",
    },
    "probes": {
        "tree_levels": "uturn.probes.tree:TreeLevels",
        "tree_nodes": "uturn.probes.tree:TreeNodes",
        "parsed_levels": "uturn.probes.tree:ParsedLevels",
        "messages": "uturn.probes.tree:Messages",
        "network_layers": "uturn.probes.network_layers:NetworkLayers",
        "images": "uturn.probes.pictures:KeepImages",
        "scales": "uturn.probes.scales:Scales",
        "changes": "uturn.probes.changes:Changes",
        "perceptual": "uturn.probes.perceptual:Perceptual",
        "kept_tokens": "uturn.probes.tokens:KeptTokens",
        "tokens": "uturn.probes.tokens:KeepTokens",
        "text_layers": "uturn.probes.texts:TextLayers",
        "text_encoder": "uturn.probes.texts:TextEncoder",
        "text_likelihood": "uturn.probes.texts:TextLikelihood",
        "repetition": "uturn.probes.repetition:Repetition",
        "text_class": "uturn.probes.texts:TextClass",
    },
}
"""Built-in parts, {role: {type: import path of the class}}."""
for _tool in own_tools().values():
    for _role, _kinds in _tool.parts.items():
        PARTS[_role] |= _kinds


@dataclass(frozen=True)
class Slot:
    """The place of a part in a spec, such as "source" or "probes[0]"."""

    role: str
    """ "source", "corruption", "backward" or "probes"."""
    index: int | None = None
    """Number of a probe."""

    def __str__(self) -> str:
        return self.role if self.index is None else f"{self.role}[{self.index}]"


class InstalledPart(NamedTuple):
    """A part that an installed package registers."""

    kind: str
    """Its type in specs."""
    path: str
    """The import path of its class."""
    package: str


def part_class(role: str, kind: str) -> type:
    """The class of a built-in part."""
    cls: type = import_object(PARTS[role][kind], f"{role} {kind!r}", "'module:Class'")
    return cls


def stored_class(role: str, table: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a class, whose base the role says
    """The class of the built-in part that a table of a stored spec names; None for others."""
    kind = table.get("type")
    is_built_in = isinstance(kind, str) and kind in PARTS[role]
    return part_class(role, str(kind)) if is_built_in else None


def installed_parts() -> list[InstalledPart]:
    """The parts that installed packages register by entry points, and those of their tools."""
    found = []
    for entry in entry_points(group=GROUP):
        package = entry.dist.name if entry.dist else "a package"
        found.append(InstalledPart(entry.name, entry.value, package))
    for name, tool in installed_tools().items():
        for kinds in tool.parts.values():
            found += [InstalledPart(kind, path, name) for kind, path in kinds.items()]
    return found


def installed_part(kind: object) -> str | None:
    """The import path of a type that an installed package registers, or None.

    ValueError if two packages register it.
    """
    packages = {part.path: part.package for part in installed_parts() if part.kind == kind}
    is_one = len(packages) < 2 and all(map(is_import_path, packages))
    expected = "one 'module:Class'; uninstall the others"
    expect(is_one, f"type {kind!r}, as packages register it,", packages, expected)
    return next(iter(packages), None)


def build(
    role: str, table: Mapping[str, Any], trusted: bool = True, index: int | None = None
) -> Any:  # noqa: ANN401 - a part, whose type the role says
    """The part that a table of a spec describes. `role`, and `index` of a probe: as in `Slot`.

    ValueError if there is no such part, if it lacks a member or rejects its arguments, the other
    keys of the table. `trusted`: whether the table may name user-defined parts, whose code is then
    run.
    """
    slot = Slot(role, index)
    kind = table.get("type")
    options = {key: value for key, value in table.items() if key != "type"}
    if isinstance(kind, str) and kind in PARTS[role]:
        try:
            return part_class(role, kind)(**options)
        except (ValidationError, TypeError) as error:
            raise ValueError(f"{slot}: {one_line(error)}") from None
    path = kind if isinstance(kind, str) and is_import_path(kind) else installed_part(kind)
    if path is None:
        installed = sorted({part.kind for part in installed_parts()})
        known = [*PARTS[role], *(kind for kind in installed if kind not in PARTS[role])]
        raise ValueError(f"{slot}.type = {kind!r}: expected one of {known}, or 'module:Class'")
    way_out = "hand over the spec file instead"
    expected = f"no code of others, which a stored spec may not name; {way_out}"
    expect(trusted, f"{slot}.type", kind, expected)
    label = f"{slot} ({kind!r})"
    cls = import_object(path, f"{slot}.type = {kind!r}", "'module:Class'")
    check_class(label, cls, BASES[role])  # before it is called
    with noted(label):
        part = cls(**options)
    # Works for frozen dataclasses, too.
    object.__setattr__(part, "own_label", label)
    object.__setattr__(part, "own_table", dict(table))
    check_own(part)
    return part


def check_fit(
    source: Source,
    corruption: Corruption,
    backward: Backward,
    probes: Sequence[Probe],
    trajectories: int,
) -> None:
    """ValueError unless parts accept the kind of data of the source and fit each other."""
    kind = source.kind or "the source"
    type_of_backward = table_of(backward)["type"]

    def takes(part: Part | type[Part]) -> bool:
        return not part.kinds or not source.kind or source.kind in part.kinds

    def is_undone(part: Part | type[Part]) -> bool:
        return takes(part) and undoes(backward, cast(Corruption, part))

    of_both = f"{kind}, backward {type_of_backward!r}"
    _check_takes(Slot("backward"), backward, takes, kind)
    _check_takes(Slot("corruption"), corruption, is_undone, of_both)
    for index, probe in enumerate(probes):
        slot = Slot("probes", index)
        _check_takes(slot, probe, takes, kind)
        least = probe.least_trajectories
        needed = f"at least {least} of each item for {slot}, {table_of(probe)['type']!r}"
        expect(trajectories >= least, "trajectories", trajectories, needed)
    if is_own(corruption):
        lacks = [member for member in backward.asks if not hasattr(corruption, member)]
        asked = f"one with {', '.join(lacks)}, which the backward {type_of_backward!r} asks for"
        expect(not lacks, "corruption", table_of(corruption)["type"], asked)


def _check_takes(
    slot: Slot, part: Part, fits: Callable[[Part | type[Part]], bool], kind: str
) -> None:
    """ValueError unless a part fits; it names the built-in parts that do."""
    if fits(part):
        return
    allowed = [key for key in PARTS[slot.role] if fits(part_class(slot.role, key))]
    expected = f"no built-in one does, write your own ({DOCS})"
    if allowed:
        expected = f"expected one of {allowed}"
    given = table_of(part)["type"]
    raise ValueError(f"{slot}: type {given!r} does not go with {kind}; {expected}")


def as_part(role: str, value: object, index: int | None = None) -> Any:  # noqa: ANN401 - a part, whose type the role says
    """The part of a table, or a given part.

    A user-defined part is built from its table, so that a spec describes it.
    """
    if isinstance(value, Mapping):
        return build(role, value, index=index)
    base = BASES[role]
    of_base = f"a part, which inherits from uturn.{base.__name__}"
    expected = f"a table with a `type`, or {of_base}"
    expect(isinstance(value, base), str(Slot(role, index)), value, expected)
    table = table_of(cast(Part, value))
    return value if table["type"] in PARTS[role] else build(role, table, index=index)


def table_of(part: Part) -> Table:
    """The table of a part in a spec: its type, and the options that differ from the defaults."""
    if is_own(part):
        return dict(part.own_table)
    path = f"{type(part).__module__}:{type(part).__qualname__}"
    kind = _built_in(path)
    if isinstance(part, BaseModel):
        return {"type": kind or path, **part.model_dump(mode="json", exclude_defaults=True)}
    if kind is not None:  # built-in corruptions without a model have no options
        return {"type": kind}
    if is_dataclass(part):
        options = {}
        for field in fields(part):
            value = getattr(part, field.name)
            if field.init and value != field.default:
                options[field.name] = value
        return {"type": path, **plain(options)}
    way_out = f"give a table, {{'type': {path!r}, ..}}"
    is_plain = not getattr(part, "__dict__", None)
    expect(is_plain, "options", part, f"a dataclass, whose fields are known; or {way_out}")
    return {"type": path}


def _built_in(path: str) -> str | None:
    """The type of the built-in part with an import path; None if there is none."""
    for kinds in PARTS.values():
        for kind, built_in in kinds.items():
            if built_in == path:
                return kind
    return None


def filled(spec: Mapping[str, Any]) -> Table:
    """A stored spec, or identity, completed by the defaults of built-in parts and one clone."""
    tables = {role: _filled(role, spec[role]) for role in ROLES if role in spec}
    probes = spec.get("probes")
    if isinstance(probes, list):
        tables["probes"] = [_filled("probes", table) for table in probes]
    return {"clones": 1, **spec, **tables}


def _filled(role: str, table: object) -> object:
    """A table with the defaults of a built-in part; any other value as it is."""
    if not isinstance(table, dict):
        return table
    cls = stored_class(role, table)
    if cls is None:
        return table
    options = getattr(cls, "model_fields", {})
    filled = {name: option.default for name, option in options.items() if not option.is_required()}
    filled |= table
    return filled
