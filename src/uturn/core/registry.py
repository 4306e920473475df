"""Names of parts in specs, with the import paths of their classes, and the parts that the tables of
a spec describe.

Importing user-defined parts runs their code, so only a spec given by the user may name them, not a
spec read from a store.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel, ValidationError

from uturn.core.checks import expect, plain
from uturn.core.contracts import undoes
from uturn.core.errors import noted
from uturn.core.imports import import_object, is_import_path
from uturn.core.messages import one_line
from uturn.core.own_parts import DOCS, is_own
from uturn.core.protocols import BASES, Backward, Corruption, Part, Probe, Source
from uturn.core.tools import installed_tools, own_tools

GROUP = "uturn.parts"
"""Entry points of installed packages: the name of one is the `type` in a spec, its value the
class.
"""

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
"""Built-in parts, {idea: {type: import path of the class}}."""
for _tool in own_tools().values():
    for _idea, _kinds in _tool.parts.items():
        PARTS[_idea] |= _kinds


FAMILIES = {
    "strings": "uturn.sources.strings:StringSource",
    "tokens": "uturn.sources.tokens:TextSource",
    "images": "uturn.sources.images:ImageSource",
}
"""What sources of a kind of data inherit from, since the built-in parts for this kind ask for
its members.
"""


def _check_family(part: Source) -> None:
    """ValueError unless a source of strings, texts or images inherits what the built-in parts
    for them ask of it.
    """
    if part.kind in FAMILIES:
        family = import_object(FAMILIES[part.kind], f"kind {part.kind!r}", "'module:Class'")
        if not isinstance(part, family):
            needed = f"a source of kind {part.kind!r} inherits from uturn.sources.{family.__name__}"
            raise ValueError(
                f"{part.own_label}: {needed}, since the built-in parts for {part.kind} ask for its"
                " members"
            )


def _check_corrupt(part: Corruption) -> None:
    """ValueError unless the method `corrupt` takes what every corruption is given."""
    signature = inspect.signature(part.corrupt)
    options = {"vocab_size": 2} if part.needs_vocab_size else {}
    given = ", ".join(["data, noise, keys", *(f"{name}=.." for name in options)])
    try:
        signature.bind(None, None, None, **options)
    except TypeError:
        where = f"{part.own_label}: the method is corrupt{signature}"
        raise ValueError(
            f"{where}, but it is called as corrupt({given}); see help(ut.Corruption)"
        ) from None


@dataclass(frozen=True)
class Slot:
    """The place of a part in a spec, such as "source" or "probes[0]"."""

    role: str
    """ "source", "corruption", "backward" or "probes"."""
    index: int | None = None
    """Number of a probe."""

    def __str__(self) -> str:
        return self.role if self.index is None else f"{self.role}[{self.index}]"


def part_class(idea: str, kind: str) -> type:
    cls: type = import_object(PARTS[idea][kind], f"{idea} {kind!r}", "'module:Class'")
    return cls


def installed_part(kind: Any) -> str | None:
    """The import path of a type registered by an installed package, or None; ValueError if two
    packages register it.
    """
    packages = {
        entry.value: entry.dist.name if entry.dist else "a package"
        for entry in entry_points(group=GROUP, name=kind)
    }
    for name, tool in installed_tools().items():
        packages |= {
            path: name
            for kinds in tool.parts.values()
            for own, path in kinds.items()
            if own == kind
        }
    is_one = len(packages) < 2 and all(map(is_import_path, packages))
    expect(
        is_one,
        f"type {kind!r}, as packages register it,",
        packages,
        "one 'module:Class'; uninstall the others",
    )
    return next(iter(packages), None)


def build(
    role: str, table: Mapping[str, Any], trusted: bool = True, index: int | None = None
) -> Any:
    """The part that a table of a spec describes. `role`, and `index` of a probe: as in `Slot`.

    ValueError if there is no such part, if it lacks a member or rejects its arguments, the other
    keys of the table. `trusted`: whether the table may name user-defined parts, whose code is then
    run.
    """
    name = Slot(role, index)
    kind = table.get("type")
    options = {key: value for key, value in table.items() if key != "type"}
    if isinstance(kind, str) and kind in PARTS[role]:
        try:
            return part_class(role, kind)(**options)
        except (ValidationError, TypeError) as error:
            raise ValueError(f"{name}: {one_line(error)}") from None
    path = kind if isinstance(kind, str) and is_import_path(kind) else installed_part(kind)
    if path is None:
        of_tools = (
            kind
            for tool in installed_tools().values()
            for kinds in tool.parts.values()
            for kind in kinds
        )
        known = [
            *dict.fromkeys([*PARTS[role], *sorted({*entry_points(group=GROUP).names, *of_tools})])
        ]
        raise ValueError(f"{name}.type = {kind!r}: expected one of {known}, or 'module:Class'")
    expect(
        trusted,
        f"{name}.type",
        kind,
        "no code of others, which a stored spec may not name; hand over the spec file instead",
    )
    label = f"{name} ({kind!r})"
    cls = import_object(path, f"{name}.type = {kind!r}", "'module:Class'")
    check_class(label, cls, role)  # before it is called
    with noted(label):
        part = cls(**options)
    # Works for frozen dataclasses, too.
    object.__setattr__(part, "own_label", label)
    object.__setattr__(part, "own_table", dict(table))
    check_own(part, role)
    return part


def check_class(label: str, cls: object, idea: str) -> None:
    """ValueError unless a class is a part: it inherits from the base class of its idea, and has
    the required methods.
    """
    base = BASES[idea]
    if not isinstance(cls, type):
        raise ValueError(
            f"{label} is a {type(cls).__name__}; expected a class that inherits from"
            f" uturn.{base.__name__} ({DOCS})"
        )
    if not issubclass(cls, base):
        way_out = f"write `class {cls.__name__}(ut.{base.__name__})` ({DOCS})"
        raise ValueError(
            f"{label}: the class does not inherit from uturn.{base.__name__}; {way_out}"
        )
    lacks = sorted(cls.__abstractmethods__)
    if lacks:
        raise ValueError(
            f"{label}: the class lacks {', '.join(lacks)}; see help(ut.{base.__name__})"
        )


def check_own(part: Part, idea: str) -> None:
    """ValueError for values of a user-defined part that are missing, or a text where several
    texts are expected.
    """
    label = part.own_label
    for member in ("unit", "max_noise") if idea == "corruption" else ():
        if not hasattr(part, member):
            raise ValueError(f"{label}: the class lacks {member}; see help(ut.Corruption)")
    if isinstance(part, Corruption):
        _check_corrupt(part)
    if isinstance(part, Source):
        _check_family(part)
    for member in ("kinds", "undoes", "asks", "execution"):
        names = getattr(part, member, ())
        # Parts of a text are "in" it.
        expect(not isinstance(names, str), f"{label}.{member}", names, "a tuple of strings")


def check_fit(
    source: Source,
    corruption: Corruption,
    backward: Backward,
    probes: Sequence[Probe],
    trajectories: int,
) -> None:
    """ValueError if parts accept different kinds of data, or if the backward does not undo the
    corruption.
    """
    type_of_backward = table_of(backward)["type"]

    # A part, or the class of one: what they accept is said by values of the class.
    def takes(part: Any) -> bool:
        return not part.kinds or not source.kind or source.kind in part.kinds

    def is_undone(part: Any) -> bool:
        return takes(part) and undoes(backward, part)

    def check_takes(slot: Slot, part: Part, fits: Callable[[Any], bool], kind: str) -> None:
        if fits(part):
            return
        allowed = [key for key in PARTS[slot.role] if fits(part_class(slot.role, key))]
        expected = (
            f"expected one of {allowed}"
            if allowed
            else f"no built-in one does, write your own ({DOCS})"
        )
        raise ValueError(
            f"{slot}: type {table_of(part)['type']!r} does not go with {kind}; {expected}"
        )

    kind = source.kind or "the source"
    check_takes(Slot("backward"), backward, takes, kind)
    of_both = f"{kind}, backward {type_of_backward!r}"
    check_takes(Slot("corruption"), corruption, is_undone, of_both)
    for index, probe in enumerate(probes):
        slot = Slot("probes", index)
        check_takes(slot, probe, takes, kind)
        least = probe.least_trajectories
        needed = f"at least {least} of each item for {slot}, {table_of(probe)['type']!r}"
        expect(trajectories >= least, "trajectories", trajectories, needed)
    lacks = [
        member for member in backward.asks if is_own(corruption) and not hasattr(corruption, member)
    ]
    asked = f"one with {', '.join(lacks)}, which the backward {type_of_backward!r} asks for"
    expect(not lacks, "corruption", table_of(corruption)["type"], asked)


def as_part(role: str, value: Any, index: int | None = None) -> Any:
    """The part of a table, or a given part. A user-defined one is built from its table, so that
    a spec describes it.
    """
    if isinstance(value, Mapping):
        return build(role, value, index=index)
    base = BASES[role]
    expect(
        isinstance(value, base),
        str(Slot(role, index)),
        value,
        f"a table with a `type`, or a part, which inherits from uturn.{base.__name__}",
    )
    table = table_of(value)
    return value if table["type"] in PARTS[role] else build(role, table, index=index)


def table_of(part: Any) -> dict[str, Any]:
    """The table of a part in a spec: its type, and the options that differ from the defaults of
    its class.
    """
    if is_own(part):
        return dict(part.own_table)
    path = f"{type(part).__module__}:{type(part).__qualname__}"
    kind = next(
        (kind for kinds in PARTS.values() for kind, built_in in kinds.items() if built_in == path),
        path,
    )
    if isinstance(part, BaseModel):
        return {"type": kind, **part.model_dump(mode="json", exclude_defaults=True)}
    if kind != path:  # built-in corruptions without a model have no options
        return {"type": kind}
    is_plain = is_dataclass(part) or not getattr(part, "__dict__", None)
    expect(
        is_plain,
        "options",
        part,
        f"a dataclass, whose fields are known; or give a table, {{'type': {path!r}, ..}}",
    )
    values = [
        (field, getattr(part, field.name))
        for field in (fields(part) if is_dataclass(part) else ())
        if field.init
    ]
    return {
        "type": kind,
        **plain({field.name: value for field, value in values if value != field.default}),
    }


def filled(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A stored spec, or identity, completed by the defaults of built-in parts and one clone."""

    def full(idea: str, table: Any) -> Any:
        kind = table.get("type") if isinstance(table, dict) else None
        if not isinstance(kind, str) or kind not in PARTS[idea]:
            return table
        options = getattr(part_class(idea, kind), "model_fields", {})
        return {
            name: option.default for name, option in options.items() if not option.is_required()
        } | table

    tables = {
        idea: full(idea, spec[idea])
        for idea in ("source", "corruption", "backward")
        if idea in spec
    }
    if isinstance(spec.get("probes"), list):
        tables["probes"] = [full("probes", table) for table in spec["probes"]]
    return {"clones": 1, **spec, **tables}
