"""A comparison as int64 words, for `stages.filter.arithmetic`.

    word 0      relation (0 =, 1 >, 2 >=) | SIMPLE or not << 8 | SWAPPED or not << 9 | words in all << 16
    SIMPLE      what to load, its constant index, a mask, the number it is compared with: three quarters of what people write
    otherwise   both sides in postfix order: a word `operation | SWAPPED or not << 9 | operand << 16` for each number and operator

NUMBER has its value as operand; LOAD takes the index from the stack, and the word behind it says what to load:
size | base << 8 | constant index << 16 | tags << 24 | layer << 32, the layer 0 where tags say it all.

The side that needs more of the stack goes first and SWAPPED says that it was the right one, so that STACK values are always enough.
"""

from __future__ import annotations

from broker.config.policy import tree
from broker.config.policy.layers import pack_layer
from broker.config.policy.tree import Arithmetic, Binary, Compare, Load, Number, WireLength

RELATIONS = {"=": 0, ">": 1, ">=": 2}
SIMPLE, SWAPPED = 1 << 8, 1 << 9
NUMBER, LENGTH, LOAD, ADD, SUBTRACT, MULTIPLY, DIVIDE, MODULO, AND, OR, XOR, LEFT, RIGHT = range(13)
_OPERATIONS = {
    "+": ADD, "-": SUBTRACT, "*": MULTIPLY, "/": DIVIDE, "%": MODULO, "&": AND, "|": OR, "^": XOR, "<<": LEFT, ">>": RIGHT,
}  # fmt: skip
OPERAND_SHIFT = 16
BASE_SHIFT, CONSTANT_INDEX, TAGS_SHIFT, LAYER_SHIFT = 8, 1 << 16, 24, 32
STACK = 8  # enough for 128 numbers
_ALL = 0xFFFFFFFF


def compile_compare(test: Compare) -> list[int]:
    relation = RELATIONS[test.relation]
    load, mask = _unmasked(test.left)
    if isinstance(load, Load) and isinstance(load.index, Number) and isinstance(test.right, Number):
        return [relation | SIMPLE | 5 << OPERAND_SHIFT, _what(load), load.index.value, mask, test.right.value]
    words, depth = _both(relation, test.left, test.right)
    assert depth <= STACK
    first = words.pop()
    return [first | len(words) + 1 << OPERAND_SHIFT, *words]


def _unmasked(node: Arithmetic) -> tuple[Arithmetic, int]:
    match node:
        case Binary("&", left, Number(value)):
            return left, value
        case Binary("&", Number(value), right):
            return right, value
    return node, _ALL


def _what(load: Load) -> int:
    tags = tree.tags(load.layer)
    where = tags << TAGS_SHIFT if tags >= 0 else pack_layer(load.layer) << LAYER_SHIFT
    return load.size | load.base << BASE_SHIFT | (CONSTANT_INDEX if isinstance(load.index, Number) else 0) | where


def _both(operation: int, left: Arithmetic, right: Arithmetic) -> tuple[list[int], int]:
    """Words, and how many values they need room for."""
    (first, n_first), (second, n_second) = _postfix(left), _postfix(right)
    if n_second > n_first:
        return [*second, *first, operation | SWAPPED], n_second
    return [*first, *second, operation], max(n_first, n_second + 1)


def _postfix(node: Arithmetic) -> tuple[list[int], int]:
    match node:
        case Number():
            return [NUMBER | node.value << OPERAND_SHIFT], 1
        case WireLength():
            return [LENGTH], 1
        case Load():
            index, depth = _postfix(node.index)
            return [*index, LOAD, _what(node)], depth
        case Binary():
            return _both(_OPERATIONS[node.operator], node.left, node.right)
