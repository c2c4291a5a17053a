"""How questions are put to a model, whatever the model: the part of a recipe that can change an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build.schema import option_texts
from emollm.evaluate import ablation

if TYPE_CHECKING:
    from emollm.config import EvaluateRecipe

LIKELIHOOD, GENERATE = "likelihood", "generate"
# Tokens of a generated answer. Open questions want a word; a model that is asked for an option may first say a sentence.
MAX_NEW_TOKENS = {LIKELIHOOD: 16, GENERATE: 64}


class Asking(NamedTuple):
    """See the fields of the same names of `EvaluateRecipe`."""

    mode: str = LIKELIHOOD
    ablation: str = ablation.NONE
    option_form: str = "asked"
    calibrate: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS[LIKELIHOOD]

    @classmethod
    def of(cls, recipe: EvaluateRecipe) -> Asking:
        return cls(
            recipe.mode,
            recipe.ablation,
            recipe.option_form,
            recipe.calibrate,
            recipe.max_new_tokens or MAX_NEW_TOKENS[recipe.mode],
        )

    def options(self, sample: Mapping[str, Any]) -> list[str]:
        """What is scored for each option of a sample, in their order; nothing where the answer is generated."""
        if self.mode == GENERATE or not sample["options"]:
            return []
        if self.option_form == "asked":
            return option_texts(sample)
        return option_texts({**sample, "provenance": {"template_id": f"+{self.option_form}"}})
