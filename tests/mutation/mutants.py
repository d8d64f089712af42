"""Small faults put into a module one at a time: each is a mutant that some test should notice."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARED: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_COMPUTED: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_PAIRS = (
    ("min", "max"),
    ("any", "all"),
    ("amin", "amax"),
    ("argmin", "argmax"),
    ("minimum", "maximum"),
    ("clamp_min", "clamp_max"),
    ("zeros_like", "ones_like"),
)
_CALLED = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        line: where it is.
        change: what was there and what is there now.
        tree: of the whole module with it.
    """

    line: int
    change: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its text; docstrings, annotations, texts and log lines stay."""
    count = sum(len(_changes(node)) for node in _mutable(ast.parse(source)))
    for number in range(count):
        tree = ast.parse(source)
        yield _mutated(tree, number)


def _mutated(tree: ast.Module, number: int) -> Mutant:
    for node in _mutable(tree):
        changes = _changes(node)
        if number < len(changes):
            line, before = node.lineno, _text(node)
            _replace(tree, node, changes[number])
            ast.fix_missing_locations(tree)
            return Mutant(line, f"{before} -> {_text(changes[number])}", tree)
        number -= len(changes)
    raise IndexError(number)


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:160]


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    ast.copy_location(new, old)
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
                return
            if isinstance(value, list) and any(part is old for part in value):
                value[[part is old for part in value].index(True)] = new
                return


def _mutable(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may change, depth first."""
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "bases"}:
            continue
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.AST) and not _is_text(part):
                yield part
                yield from _mutable(part)


def _is_text(node: ast.AST) -> bool:
    """Docstrings, imports, types, errors and log lines, of which nothing is computed."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert)):
        return True
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"__all__"}:
        return True
    if (
        isinstance(node, (ast.Assign, ast.AnnAssign))
        and node.value is not None
        and "Literal[" in ast.unparse(node.value)
    ):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or ast.unparse(node.value).startswith("logger.")
    return False


def _changes(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return [ast.Compare(node.left, [op()], node.comparators) for op in _COMPARED[type(node.ops[0])]]
    if isinstance(node, ast.BinOp) and type(node.op) in _COMPUTED:
        return [ast.BinOp(node.left, _COMPUTED[type(node.op)](), node.right)]
    if isinstance(node, ast.AugAssign) and type(node.op) in _COMPUTED:
        return [ast.AugAssign(node.target, _COMPUTED[type(node.op)](), node.value), ast.Pass()]
    if isinstance(node, ast.BoolOp):
        return [ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)]
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    if isinstance(node, ast.Constant):
        return _numbers(node.value)
    if isinstance(node, ast.Call):
        return _other_call(node)
    if isinstance(node, (ast.If, ast.IfExp)) and isinstance(node.test, (ast.Name, ast.Attribute, ast.Call)):
        return [type(node)(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)]
    if isinstance(node, ast.Expr) or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript)):
        return [ast.Pass()]
    return []


def _numbers(value: object) -> list[ast.AST]:
    if isinstance(value, bool):
        return [ast.Constant(not value)]
    if isinstance(value, int):
        return [ast.Constant(value + 1), ast.Constant(value - 1)]
    return [ast.Constant(value + 1)] if isinstance(value, float) else []  # twice a tolerance is as good a tolerance


def _other_call(node: ast.Call) -> list[ast.AST]:
    called = node.func
    if isinstance(called, ast.Attribute) and called.attr in _CALLED:
        return [ast.Call(ast.Attribute(called.value, _CALLED[called.attr], called.ctx), node.args, node.keywords)]
    if isinstance(called, ast.Name) and called.id in _CALLED:
        return [ast.Call(ast.Name(_CALLED[called.id], called.ctx), node.args, node.keywords)]
    return []
