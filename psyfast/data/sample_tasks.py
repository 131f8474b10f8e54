"""Three tasks and their simulated participants, the material of the embedded sample (sample.py).

Each participant follows a published model of choice with parameters of their own, so the probability of every response
is known when it is given:

    two-armed bandit   Q ← Q + α·(reward − Q);                      P(a) = softmax(β·Q)             (Rescorla-Wagner)
    risky choice       V = Σ w(p)·v(x), v(x) = x^ρ or −λ·(−x)^ρ;    P(a) = 1 / (1 + exp(−θ·ΔV))     (prospect theory)
                       w(p) = p^γ / (p^γ + (1−p)^γ)^(1/γ)
    lexical decision   P(word) = 1 / (1 + exp(−(drift·evidence + bias)))                            (a diffusion's choice)

Reaction times are shifted lognormals whose median grows with conflict, that is with how near the choice is to a toss-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

# Letters that read as words (A, I) or as digits (O) would make poor key names.
_KEYS = "BCDEFGHJKLMNPQRSTUVWXYZ"


class Draws:
    """Random values of one participant, all made from `Generator.random`, whose stream numpy keeps between releases."""

    def __init__(self, *seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """In [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def normal(self) -> float:
        """Standard normal, by Box and Muller."""
        radius = math.sqrt(-2.0 * math.log(1.0 - self.uniform()))
        return radius * math.cos(2.0 * math.pi * self.uniform())

    def integer(self, low: int, high: int) -> int:
        """Between low and high, both possible."""
        return low + int(self.uniform() * (high - low + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        """One of them."""
        return items[self.integer(0, len(items) - 1)]

    def order(self, items: Sequence[Item]) -> list[Item]:
        """All of them, shuffled."""
        keys = [self.uniform() for _ in items]
        return [items[idx] for idx in sorted(range(len(items)), key=keys.__getitem__)]


@dataclass
class Session:
    """A session in the making. probs: of the first option at every response; firsts: whether it was chosen."""

    lines: list[str]
    options: list[list[str]] = field(default_factory=list)
    probs: list[float] = field(default_factory=list)
    firsts: list[bool] = field(default_factory=list)
    rts_ms: list[int] = field(default_factory=list)

    def respond(self, draws: Draws, options: Sequence[str], prob_first: float, fastest_ms: float) -> str:
        """Draw a response with the probability given, keep everything about it, and return its key."""
        is_first = draws.uniform() < prob_first
        self.options.append(list(options))
        self.probs.append(prob_first)
        self.firsts.append(is_first)
        conflict = 1.0 - abs(2.0 * prob_first - 1.0)
        decision_ms = 260.0 * math.exp(1.1 * conflict + 0.35 * draws.normal())
        self.rts_ms.append(round(fastest_ms + decision_ms))
        return options[0] if is_first else options[1]

    def nll_nats(self) -> list[float]:
        """−ln of the probability that each response was drawn with; six decimals, alike on every processor."""
        chosen = (prob if first else 1.0 - prob for prob, first in zip(self.probs, self.firsts, strict=True))
        return [round(-math.log(prob), 6) for prob in chosen]


def _sigmoid(x: float) -> float:
    """Logistic function, kept off 0 and 1: every response stays possible, so its NLL is finite."""
    return min(max(1.0 / (1.0 + math.exp(-x)), 0.005), 0.995)


def bandit_session(draws: Draws, num_trials: int) -> Session:
    """A two-armed bandit whose better arm changes sides once, half way through."""
    keys = draws.order(_KEYS)[:2]
    learning_rate, inverse_temperature = draws.uniform(0.25, 0.65), draws.uniform(3.0, 7.0)
    win_probs = draws.order([0.2, 0.8])
    session = Session(
        [
            "In this task, you have to choose repeatedly between two slot machines, labeled "
            f"{keys[0]} and {keys[1]}. You choose a machine by pressing its key. Each time, the machine that you chose "
            "pays either one point or nothing. One machine pays more often than the other, and this may change during "
            f"the task without notice. You play {num_trials} rounds. Your goal is to win as many points as possible.",
            "",
        ]
    )
    values = [0.5, 0.5]
    fastest_ms = draws.uniform(200.0, 320.0)
    for trial in range(num_trials):
        if trial == num_trials // 2:
            win_probs.reverse()
        key = session.respond(draws, keys, _sigmoid(inverse_temperature * (values[0] - values[1])), fastest_ms)
        arm = keys.index(key)
        reward = int(draws.uniform() < win_probs[arm])
        values[arm] += learning_rate * (reward - values[arm])
        session.lines.append(f"You press <<{key}>>. You win {reward} point{'' if reward == 1 else 's'}.")
    return session


def subjective_value(amount: float, curvature: float, loss_aversion: float) -> float:
    """v(x) = x^ρ for gains, −λ·(−x)^ρ for losses (Tversky & Kahneman, 1992)."""
    value: float = amount**curvature if amount >= 0 else -loss_aversion * (-amount) ** curvature
    return value


def weighted_probability(prob: float, gamma: float) -> float:
    """w(p) = p^γ / (p^γ + (1 − p)^γ)^(1/γ) (Tversky & Kahneman, 1992)."""
    weighted: float = prob**gamma / (prob**gamma + (1.0 - prob) ** gamma) ** (1.0 / gamma)
    return weighted


def risky_session(draws: Draws, num_trials: int) -> Session:
    """Choices between a gamble with a gain and a loss or nothing, and a sure amount."""
    keys = draws.order(_KEYS)[:2]
    curvature, loss_aversion = draws.uniform(0.75, 0.95), draws.uniform(1.3, 2.4)
    gamma, sensitivity = draws.uniform(0.55, 0.85), draws.uniform(0.25, 0.5)
    fastest_ms = draws.uniform(450.0, 700.0)
    session = Session(
        [
            f"You will choose between two lotteries, {keys[0]} and {keys[1]}, several times. Each lottery is described "
            "by the points that it pays and their probabilities. You do not learn what a lottery would have paid. "
            "There are no right or wrong answers; choose the lottery that you prefer by pressing its key.",
            "",
        ]
    )
    for _ in range(num_trials):
        gain, percent = draws.integer(10, 60), 5 * draws.integer(2, 18)
        loss = draws.integer(5, 30) if draws.uniform() < 0.5 else 0
        prob = percent / 100
        expected = prob * gain - (1.0 - prob) * loss
        sure = round(expected + draws.uniform(-10.0, 10.0))
        gamble_value = weighted_probability(prob, gamma) * subjective_value(gain, curvature, loss_aversion)
        gamble_value += weighted_probability(1.0 - prob, gamma) * subjective_value(-loss, curvature, loss_aversion)
        sure_value = subjective_value(sure, curvature, loss_aversion)
        otherwise = f"-{loss} points" if loss else "nothing"
        texts = [f"{gain} points with {percent}%, otherwise {otherwise}", f"{sure} points for sure"]
        gamble_idx = draws.integer(0, 1)  # which key the gamble lies on
        shown = texts if gamble_idx == 0 else texts[::-1]
        sign = 1.0 if gamble_idx == 0 else -1.0
        key = session.respond(draws, keys, _sigmoid(sign * sensitivity * (gamble_value - sure_value)), fastest_ms)
        session.lines.append(f"{keys[0]}: {shown[0]}. {keys[1]}: {shown[1]}. You press <<{key}>>.")
    return session


_COMMON = """
house water table green paper window garden morning friend summer river market winter doctor letter yellow mother dinner
animal mountain bread music horse street family kitchen village flower island silver
"""
_RARE = """
quorum plinth sextant gambit thimble lichen pewter trellis cudgel ferret isthmus sorrel bodkin cornice parsnip vellum
halberd tureen oriole linnet marrow sconce tallow gantry bramble curlew
"""
COMMON_WORDS, RARE_WORDS = tuple(_COMMON.split()), tuple(_RARE.split())

# Endings that English has, but hardly after these vowels: plain syllables would spell real words now and then.
_ONSETS = (
    "b",
    "bl",
    "br",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "pr",
    "r",
    "s",
    "sl",
    "t",
)
_VOWELS = "aeiou"
_STRESSED_VOWELS = ("au", "oi", "ui")
_CODAS = ("lf", "lk", "lm", "mf", "rv", "ft")


def pseudoword(draws: Draws, num_syllables: int) -> str:
    """A pronounceable string of 1 or 2 syllables that is no word."""
    if num_syllables == 1:
        return draws.pick(_ONSETS) + draws.pick(_STRESSED_VOWELS) + draws.pick(_CODAS)
    syllables = [draws.pick(_ONSETS) + draws.pick(_VOWELS) for _ in range(num_syllables)]
    return "".join(syllables) + draws.pick(_CODAS)


def lexical_session(draws: Draws, num_trials: int) -> Session:
    """Word or not: common words are told apart easily, rare ones and short pseudowords less so."""
    keys = draws.order(_KEYS)[:2]
    drift, bias = draws.uniform(0.8, 1.3), 0.4 * draws.normal()
    fastest_ms = draws.uniform(280.0, 380.0)
    session = Session(
        [
            "In this experiment, you will see one string of letters after another. Decide for each whether it is an "
            f"existing English word. If it is a word, press {keys[0]}; if it is not a word, press {keys[1]}. Please "
            "respond as fast and as accurately as you can.",
            "",
        ]
    )
    common, rare = draws.order(COMMON_WORDS), draws.order(RARE_WORDS)
    # Balanced in blocks of four (two words, two pseudowords), so that a list may be as long as the words last.
    kinds = [kind for _ in range(-(-num_trials // 4)) for kind in draws.order(["common", "rare", "short", "long"])]
    for trial, kind in enumerate(kinds[:num_trials]):
        block_idx = trial // 4
        if kind in ("common", "rare"):
            words = common if kind == "common" else rare
            string = words[block_idx % len(words)]
        else:
            string = pseudoword(draws, 1 if kind == "short" else 2)
        evidence = {"common": 3.2, "rare": 0.9, "short": -1.4, "long": -2.6}[kind] + 0.5 * draws.normal()
        key = session.respond(draws, keys, _sigmoid(drift * evidence + bias), fastest_ms)
        session.lines.append(f"The string is {string}. You press <<{key}>>.")
    return session


TASKS: dict[str, Callable[[Draws, int], Session]] = {
    "synthetic_two_armed_bandit": bandit_session,
    "synthetic_risky_choice": risky_session,
    "synthetic_lexical_decision": lexical_session,
}
"""Study name -> what simulates one of its sessions."""
