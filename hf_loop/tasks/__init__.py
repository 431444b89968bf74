"""Diagnostic tasks as `datasets` with text, each with its own tokenizer."""

from .addition import addition
from .approximate_counting import approximate_counting
from .associative_recall import associative_recall, recall_accuracy
from .boolean_circuits import boolean_circuits
from .cellular_automaton import cellular_automaton
from .coin_flips import coin_flips
from .computation_graph import ComputationGraph
from .delayed_shell_game import delayed_shell_game
from .fact_recall import fact_recall
from .grids import grid_tokenizer
from .group_words import group_words
from .i_gsm import i_gsm
from .list_ops import list_ops
from .maze import maze
from .modular_arithmetic import modular_arithmetic
from .multi_hop_facts import multi_hop_facts
from .multiplication import multiplication
from .non_adjacent_sum import non_adjacent_sum
from .p_hop import p_hop
from .passkey import passkey
from .passkey_text import passkey_text
from .post_machine import post_machine, run_program
from .puzzle_csv import puzzle_csv
from .reasoning_gym_task import reasoning_gym_task
from .rule_110 import rule_110, rule_110_accuracy
from .scan import scan
from .shell_game import shell_game
from .successor import successor, successor_accuracy
from .sudoku import sudoku
from .tokenizer import word_tokenizer
from .two_subroutines import two_subroutines


__all__ = [
    "ComputationGraph",
    "addition",
    "approximate_counting",
    "associative_recall",
    "boolean_circuits",
    "cellular_automaton",
    "coin_flips",
    "delayed_shell_game",
    "fact_recall",
    "grid_tokenizer",
    "group_words",
    "i_gsm",
    "list_ops",
    "maze",
    "modular_arithmetic",
    "multi_hop_facts",
    "multiplication",
    "non_adjacent_sum",
    "p_hop",
    "passkey",
    "passkey_text",
    "post_machine",
    "puzzle_csv",
    "reasoning_gym_task",
    "recall_accuracy",
    "rule_110",
    "rule_110_accuracy",
    "run_program",
    "scan",
    "shell_game",
    "successor",
    "successor_accuracy",
    "sudoku",
    "two_subroutines",
    "word_tokenizer",
]


def __dir__() -> list[str]:
    return __all__
