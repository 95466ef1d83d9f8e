"""A comparison as int64 words, for `stages.filter.arithmetic`.

    word 0      relation (0 =, 1 >, 2 >=) | SIMPLE or not << 8 | how many words follow << 16
    SIMPLE      what to load, its constant index, a mask, the number it is compared with: three quarters of what people write
    otherwise   left side, right side, each in postfix order: its sides, then a word `operation | operand << 8`

NUMBER has its value as operand; LOAD takes the index before it and has what to load in the word behind it. What to load is
size | base << 8 | constant index << 16 | tags << 24 | layer << 32, the layer 0 where tags say it all.
"""

from __future__ import annotations

from broker.config.policy import tree
from broker.config.policy.layers import pack_layer
from broker.config.policy.tree import Arithmetic, Binary, Compare, Load, Number, WireLength

RELATIONS = {"=": 0, ">": 1, ">=": 2}
SIMPLE = 1 << 8
WORDS_SHIFT = 16
MAX_NUMBERS = 32  # at hand at once; the parser refuses what needs more than half of them
NUMBER, LENGTH, LOAD, ADD, SUBTRACT, MULTIPLY, DIVIDE, MODULO, AND, OR, XOR, LEFT, RIGHT = range(13)
_OPERATIONS = {
    "+": ADD, "-": SUBTRACT, "*": MULTIPLY, "/": DIVIDE, "%": MODULO, "&": AND, "|": OR, "^": XOR, "<<": LEFT, ">>": RIGHT,
}  # fmt: skip
OPERAND_SHIFT = BASE_SHIFT = 8
CONSTANT_INDEX = 1 << 16
TAGS_SHIFT, LAYER_SHIFT = 24, 32
_ALL = 0xFFFFFFFF


def compile_compare(test: Compare) -> list[int]:
    relation = RELATIONS[test.relation]
    load, mask = _unmasked(test.left)
    if isinstance(load, Load) and isinstance(load.index, Number) and isinstance(test.right, Number):
        return [relation | SIMPLE, _what(load), load.index.value, mask, test.right.value]
    words = [*_postfix(test.left), *_postfix(test.right)]
    return [relation | len(words) << WORDS_SHIFT, *words]


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


def _postfix(node: Arithmetic) -> list[int]:
    match node:
        case Number():
            return [NUMBER | node.value << OPERAND_SHIFT]
        case WireLength():
            return [LENGTH]
        case Load():
            return [*_postfix(node.index), LOAD, _what(node)]
        case Binary():
            return [*_postfix(node.left), *_postfix(node.right), _OPERATIONS[node.operator]]
