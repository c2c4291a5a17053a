"""The `evaluate:` section of a recipe. A new knob of the evaluation goes here."""

from __future__ import annotations

import urllib.parse
from typing import Any, Literal

from pydantic import Field, model_validator

from dataset_build.schema import SUB_TASKS
from emollm.component import Component, known_sub_tasks

# Keys of an endpoint that change when an answer comes, but not what it is: not part of an evaluation's digest.
ENDPOINT_PACE = {"concurrency", "tries", "timeout_s", "api_key_env"}


class BootstrapConfig(Component):
    samples: int = Field(default=2000, ge=100)
    seed: int = 0


class EndpointConfig(Component):
    """An OpenAI-compatible endpoint (chat completions) whose model is scored by what it generates."""

    url: str = Field(description="base URL, for example http://127.0.0.1:8000/v1; it stands in the results")
    api_key_env: str = Field(
        default="OPENAI_API_KEY", description="environment variable with the key, sent where it is set"
    )
    concurrency: int = Field(default=4, ge=1, description="requests that wait for an answer at once")
    tries: int = Field(default=6, ge=1, description="how often a request is sent before it counts as failed")
    timeout_s: float = Field(default=120.0, gt=0)
    seed: int = 0
    request: dict[str, Any] = Field(
        default={}, description="keys of the request body to add or replace; a null removes one"
    )

    @model_validator(mode="after")
    def _check(self) -> EndpointConfig:
        if "@" in self.url.partition("//")[2].partition("/")[0] or "?" in self.url:
            raise ValueError("the endpoint's URL stands in the results: no user, password or query in it")
        try:
            parts = urllib.parse.urlsplit(self.url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # of a port that is no number or too large, and of half a bracket
            known = False
        if not known or not self.url.isprintable() or " " in self.url:
            raise ValueError(f"{self.url!r} is not an http(s) URL, for example http://127.0.0.1:8000/v1")
        return self


class EvaluateRecipe(Component):
    """How a trained model is scored; the `evaluate:` section of a recipe."""

    split: Literal["test", "val", "train"] = "test"
    sub_tasks: tuple[str, ...] = SUB_TASKS
    limit: int | None = Field(default=None, ge=1, description="score at most this many samples per sub-task")
    batch_size: int = Field(default=8, ge=1)
    workers: int = Field(default=2, ge=1)
    threads: int = Field(
        default=1, ge=1, description="OpenMP threads of one worker; other numbers give other last bits"
    )
    mode: Literal["likelihood", "generate"] = Field(
        default="likelihood",
        description="closed sub-tasks: options by log-likelihood, or text that is parsed",
    )
    ablation: Literal["none", "text_only", "image_only"] = Field(
        default="none", description="what the model is shown: all, no media, or no words of the sample"
    )
    option_form: Literal["asked", "word", "letter", "letter_word"] = Field(
        default="asked",
        description="which form of the options is scored; asked: the one the message asks for",
    )
    calibrate: bool = Field(
        default=False, description="divide by the probabilities under a content-free input"
    )
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="of a generated answer; null: 16, or 64 with mode generate"
    )
    endpoint: EndpointConfig | None = None
    allow_failures: bool = Field(
        default=False, description="count requests that failed for good as endpoint_error instead of stopping"
    )
    baselines: tuple[Literal["majority", "random", "text_only", "untrained"], ...] = (
        "majority",
        "random",
        "text_only",
        "untrained",
    )
    linear_probe: bool = Field(
        default=True, description="beside Emo-C: what the frozen tower's features alone give"
    )
    nearest_neighbour: bool = Field(
        default=True, description="the answer of the training row whose picture looks most alike"
    )
    bootstrap: BootstrapConfig = BootstrapConfig()

    @model_validator(mode="after")
    def _check(self) -> EvaluateRecipe:
        known_sub_tasks(self.sub_tasks)
        if self.calibrate and self.mode == "generate":
            raise ValueError("calibrate divides option probabilities, which mode generate does not have")
        return self
