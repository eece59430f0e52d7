"""The model providers behind one protocol; `ModelRegistry` finds the one that an agent names."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.errors import InvalidArgument, Reason
from services.executor.models.anthropic import AnthropicModel
from services.executor.models.openai import OpenAIModel
from services.executor.models.protocol import Credential, Model, ModelAnswer, ModelFailed, ModelRequest
from services.executor.models.scripted import ScriptedModel
from services.shared.clock import Clock

__all__ = ["Credential", "Model", "ModelAnswer", "ModelFailed", "ModelRegistry", "ModelRequest"]


class ModelRegistry:
    """The providers of this executor, by the name that `ModelSpec.provider` uses.

    Args:
        clock: Time for the scripted model's delays and for `Retry-After` dates.
        models: The providers; those of this package when not given.
    """

    def __init__(self, clock: Clock, models: Mapping[str, Model] | None = None) -> None:
        self._models: dict[str, Model] = (
            {"anthropic": AnthropicModel(clock), "openai": OpenAIModel(clock), "scripted": ScriptedModel(clock)}
            if models is None
            else dict(models)
        )

    def get(self, provider: str) -> Model:
        """Returns the provider's model; raises InvalidArgument, naming those that exist, when there is none."""
        model = self._models.get(provider)
        if model is None:
            known = ", ".join(self.known())
            raise InvalidArgument(
                f"There is no model provider {provider!r}; there are: {known}.",
                reason=Reason.MODEL_UNKNOWN,
                field="model.provider",
                metadata={"known": known},
            )
        return model

    def known(self) -> tuple[str, ...]:
        """Returns the names of the providers in alphabetical order."""
        return tuple(sorted(self._models))

    async def close(self) -> None:
        """Closes every provider."""
        for model in self._models.values():
            await model.close()
