"""Facts that a model must remember, and questions that follow several of them in turn.

A fact leads from an entity by a relation to an entity: from e3 by r1 to e9, from e9 by r5 to e4. Two hops:

    text        <bos>  e3   r1   r5     e4
    labels      -100   -100 -100 -100   e4

The facts are the same for every seed of the rows, and are to be remembered: they are training rows themselves. Of
"Loop, Think, & Generalize" (https://huggingface.co/papers/2604.07822), which asks two things of a model that has
learned compositions of facts: does it compose facts that it never saw in a composition (the split
`"test_systematic"`), and more of them than in training (test difficulties beyond the training's)?
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers
from .counts import plain_counts
from .rows import MAX_TRIES, TaskRow, is_test_content, task_dataset, task_splits
from .tokenizer import word_tokenizer


# facts are for training, all of them: one key for all, of which there are no test rows
FACT_KEY = next(key for key in map("fact {}".format, count()) if not is_test_content(key))


@dataclass(frozen=True)
class Facts:
    """What there is to be remembered.

    Args:
        targets (`list[list[int]]`): for each entity and each relation the entity that it leads to.
        composed (`list[list[int]]`): for each entity the relations of those of its facts that training rows compose.
        held_out (`list[list[int]]`): for each entity the relations of the others.
    """

    targets: list[list[int]]
    composed: list[list[int]]
    held_out: list[list[int]]


@plain_counts
def multi_hop_facts(
    num_train: int,
    num_test: int,
    difficulty: int = 2,
    *,
    num_entities: int = 100,
    num_relations: int = 10,
    num_held_out: int = 2,
    facts_seed: int = 0,
    min_difficulty: int = 1,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate facts and compositions of facts: `"e3 r1 r5"` is answered by `"e4"`.

    The difficulty is the number of hops, 1 for a fact.

    Args:
        num_train, num_test, difficulty, min_difficulty, test_difficulties, curriculum, group_size, seed: see
            [`task_splits`]. Test rows have two hops at least. With a `min_difficulty` above 1 no facts are in the
            training rows, for a model that has learned them.
        num_entities (`int`): entities, each with one fact for each relation.
        num_relations (`int`): relations; each leads to every entity once.
        num_held_out (`int`): facts of each entity that training rows do not compose.
        facts_seed (`int`): seed of the facts, and of which are held out.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` (all facts, and compositions of those that
        are not held out), `"test"` (other compositions of the same facts) and `"test_systematic"` (as many
        compositions of held-out facts only) with the columns of `rows.py`, and the tokenizer they are made with. The
        `thoughts` are the entities on the way.

    Raises:
        ValueError: if an argument is out of range, there are not so many compositions for a split, or not all facts
            fit in the training rows.
    """
    check_integers({"num_entities": num_entities, "num_relations": num_relations}, low=2)
    check_integers({"num_held_out": num_held_out, "min_difficulty": min_difficulty}, low=1)
    if num_held_out >= num_relations:
        raise ValueError(f"num_held_out must be below num_relations={num_relations}, got {num_held_out}")
    if test_difficulties is None:
        check_integers({"difficulty": difficulty}, low=2)
        test_difficulties = range(max(2, min_difficulty), difficulty + 1)
    check_integers({f"test_difficulties[{i}]": level for i, level in enumerate(test_difficulties)}, low=2)
    facts = draw_facts(num_entities, num_relations, num_held_out, facts_seed)
    atoms = [(entity, relation) for entity in range(num_entities) for relation in range(num_relations)]
    pending: list[tuple[int, int]] = []

    def draw_row(num_hops: int, rng: random.Random) -> TaskRow:
        if num_hops > 1:
            return _draw_composition(facts, facts.composed, num_hops, rng)
        # every fact comes before any comes again
        if not pending:
            pending.extend(rng.sample(atoms, len(atoms)))
        entity, relation = pending.pop()
        return facts_row(facts.targets, entity, [relation], key=FACT_KEY)

    tokenizer = word_tokenizer([f"e{i}" for i in range(num_entities)] + [f"r{i}" for i in range(num_relations)])
    splits = task_splits(
        draw_row,
        tokenizer,
        num_train,
        num_test,
        difficulty,
        min_difficulty=min_difficulty,
        test_difficulties=test_difficulties,
        curriculum=curriculum,
        group_size=group_size,
        seed=seed,
    )
    num_facts = splits["train"]["difficulty"][:].count(1)
    if min_difficulty == 1 and num_facts < len(atoms):
        raise ValueError(
            f"num_train must be higher: of {num_train} rows {num_facts} have one hop, and there are {len(atoms)} facts"
        )
    wanted = splits["test"]["difficulty"][:]
    systematic = _distinct_rows(
        lambda num_hops, rng: _draw_composition(facts, facts.held_out, num_hops, rng),
        wanted,
        random.Random(f"test_systematic {seed}"),
    )
    splits["test_systematic"] = task_dataset(systematic, wanted, tokenizer)
    return splits, tokenizer


def draw_facts(num_entities: int, num_relations: int, num_held_out: int, facts_seed: int) -> Facts:
    """Draw the facts, and which of them are held out.

    Args:
        num_entities (`int`): entities.
        num_relations (`int`): relations, each of which rearranges the entities.
        num_held_out (`int`): facts of each entity that are held out.
        facts_seed (`int`): seed of the draw.
    """
    rng = random.Random(facts_seed)
    orders = [rng.sample(range(num_entities), num_entities) for _ in range(num_relations)]
    held_out = [sorted(rng.sample(range(num_relations), num_held_out)) for _ in range(num_entities)]
    composed = [[relation for relation in range(num_relations) if relation not in held] for held in held_out]
    return Facts([list(row) for row in zip(*orders)], composed, held_out)


def facts_row(targets: list[list[int]], entity: int, relations: Sequence[int], key: str | None = None) -> TaskRow:
    """The row of a fact or a composition.

    Args:
        targets (`list[list[int]]`): for each entity and each relation the entity that it leads to.
        entity (`int`): where the question starts.
        relations (`Sequence[int]`): the relations to follow, in order.
        key (`str`, *optional*): see [`TaskRow`].
    """
    path = [entity]
    for relation in relations:
        path.append(targets[path[-1]][relation])
    words = [f"e{place}" for place in path]
    return TaskRow([words[0], *(f"r{i}" for i in relations)], words[-1:], thoughts=words[1:-1], key=key)


def _draw_composition(facts: Facts, allowed: list[list[int]], num_hops: int, rng: random.Random) -> TaskRow:
    """A question of so many hops from any entity, each by one of the relations that are allowed where it starts."""
    start = entity = rng.randrange(len(facts.targets))
    relations: list[int] = []
    for _ in range(num_hops):
        relations.append(rng.choice(allowed[entity]))
        entity = facts.targets[entity][relations[-1]]
    return facts_row(facts.targets, start, relations)


def _distinct_rows(
    draw_row: Callable[[int, random.Random], TaskRow], difficulties: Sequence[int], rng: random.Random
) -> list[TaskRow]:
    rows: dict[str, TaskRow] = {}
    for difficulty in difficulties:
        for _ in range(MAX_TRIES):
            row = draw_row(difficulty, rng)
            if row.content() not in rows:
                rows[row.content()] = row
                break
        else:
            raise ValueError(
                f"num_test must be lower: there are fewer than {difficulties.count(difficulty)} compositions of "
                f"{difficulty} held-out facts"
            )
    return list(rows.values())
