"""What the loss on this data says about alpha and gamma: a hint by the logic of the paper's Table 1b."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retinanet.analysis.loss.curves import Windows, percent

# gamma: (its best alpha, COCO AP of ResNet-50 at 600 pixels), Lin et al., Table 1b.
TABLE_1B: Mapping[float, tuple[float, float]] = {
    **{0.0: (0.75, 31.1), 0.1: (0.75, 31.4), 0.2: (0.75, 31.9), 0.5: (0.50, 32.9)},
    **{1.0: (0.25, 33.7), 2.0: (0.25, 34.0), 5.0: (0.25, 32.2)},
}
LEAST_ALPHA, MOST_ALPHA, BEST_GAMMA = 0.25, 0.75, 2.0  # of the table
FEWEST_POSITIVES = 100
NEAR = 2.0  # neither sign has more than this many times the loss of the other


@dataclass(frozen=True)
class Hint:
    """Which alpha and gamma to try next.

    Attributes:
        alpha: the suggested weight of the positives; that of the model where no change is suggested.
        gamma: the suggested focusing power, likewise.
        change: whether one of them differs from the model's.
        reason: sentences.
        balance: for each gamma, ascending, the alpha that would give positives and negatives of this model equal loss:
            N / (P + N), of their summed losses P and N without alpha. None where there are no positives.
    """

    alpha: float | None
    gamma: float
    change: bool
    reason: str
    balance: tuple[tuple[float, float | None], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        balance = [{"gamma": gamma, "alpha": alpha} for gamma, alpha in self.balance]
        return {
            "alpha": self.alpha,
            "gamma": self.gamma,
            "change": self.change,
            "reason": self.reason,
            "balance": balance,
        }


def hint(alpha: float | None, gamma: float, positive: Windows, negative: Windows) -> Hint:
    """The hint for a model that was trained with ``alpha`` and ``gamma``.

    Gamma: it is there to take the loss away from the easy negatives. Where the hardest 1 % of the negatives carry less
    than half of their loss, the smallest larger gamma, up to the table's best of 2, at which they would; a gamma above
    2 comes down to 2, because the table's AP falls beyond. Alpha, at that gamma: where one sign has more than twice the
    loss of the other, the alpha that balances them, but no farther than the table's best alphas go, 0.25 to 0.75, in
    steps of 0.05. So alpha falls as gamma rises and the negatives lose weight, as in the table.
    """
    pairs = zip(positive.spreads, negative.spreads, strict=True)
    balance = tuple((p.gamma, n.loss / (p.loss + n.loss) if p.loss and n.loss else None) for p, n in pairs)
    if positive.count < FEWEST_POSITIVES or not negative.count:
        few = f"there are {positive.count:,} positive windows and {negative.count:,} negative ones"
        reason = f"No change suggested: {few}, and fewer than {FEWEST_POSITIVES} positives say too little."
        return Hint(alpha, gamma, False, reason, balance)
    new_gamma, why_gamma = _gamma(gamma, negative)
    new_alpha, why_alpha = _alpha(alpha, new_gamma, dict(balance)[new_gamma])
    if new_gamma == gamma and new_alpha == alpha:
        return Hint(alpha, gamma, False, f"No change suggested. {why_gamma} {why_alpha}", balance)
    first = f"Worth a try: alpha {_text(new_alpha)}, gamma {new_gamma:g}, instead of {_text(alpha)} and {gamma:g}."
    return Hint(new_alpha, new_gamma, True, f"{first} {why_gamma} {why_alpha}", balance)


def _gamma(gamma: float, negative: Windows) -> tuple[float, str]:
    """The gamma to try, and why."""
    share = negative.spread(gamma).hardest_hundredth
    fact = f"With gamma {gamma:g} the hardest 1 % of the negatives carry {percent(share)} of the negatives' loss"
    if gamma > BEST_GAMMA:
        if not any(spread.gamma == BEST_GAMMA for spread in negative.spreads):
            return gamma, f"{fact}; the paper's AP falls beyond gamma 2 (Table 1b)."
        best, beyond = TABLE_1B[2.0][1], TABLE_1B[5.0][1]
        return BEST_GAMMA, f"{fact}; the paper found gamma 2 better than larger ones (AP {best} against {beyond} at 5)."
    if share >= 0.5:
        return gamma, f"{fact}, so the easy ones are held down."
    larger = [one for one in negative.spreads if gamma < one.gamma <= BEST_GAMMA]
    enough = [one for one in larger if one.hardest_hundredth >= 0.5] or larger[-1:]
    if not enough:
        return gamma, f"{fact}, so many easy ones still weigh; the paper found no larger gamma better than 2."
    would = f"with gamma {enough[0].gamma:g} they would carry {percent(enough[0].hardest_hundredth)}"
    return enough[0].gamma, f"{fact}, so the many easy ones outweigh them; {would}."


def _alpha(alpha: float | None, gamma: float, balance: float | None) -> tuple[float | None, str]:
    """The alpha to try at that gamma, and why."""
    assert balance is not None, "both signs have loss"
    present = 0.5 if alpha is None else alpha  # None weighs both signs alike
    odds = present / (1 - present) * (1 - balance) / balance
    share = odds / (1 + odds)
    fact = (
        f"With alpha {_text(alpha)} and gamma {gamma:g} the positives carry {percent(share)} of the classification loss"
    )
    if 1 / NEAR <= odds <= NEAR:
        return alpha, f"{fact}, so neither sign drowns the other (alpha {balance:.2g} would balance them exactly)."
    target = round(min(max(balance, LEAST_ALPHA), MOST_ALPHA) * 20) / 20
    towards = target > present if balance > present else target < present
    if not towards:
        limit = "no best alpha of the paper's Table 1b lies below 0.25 or above 0.75"
        return alpha, f"{fact}; alpha {balance:.2g} would balance them, but {limit}, so alpha stays."
    weight = "the negatives outweigh them" if odds < 1 else "they outweigh the negatives"
    limited = "" if abs(target - balance) <= 0.025 else " and the paper's best alphas lie between 0.25 and 0.75"
    return target, f"{fact}, so {weight}; alpha {balance:.2g} would balance them{limited}."


def _text(alpha: float | None) -> str:
    return "off" if alpha is None else f"{alpha:g}"
