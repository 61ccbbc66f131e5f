"""The Product Owner as a DSPy program. Importing this imports DSPy."""

from __future__ import annotations

import dspy

from po_distill.roles.product_owner.prompt import FIELD_DESCRIPTIONS, INSTRUCTIONS


class ProductOwnerSignature(dspy.Signature):  # type: ignore[misc]
    __doc__ = INSTRUCTIONS

    concept: str = dspy.InputField(desc=FIELD_DESCRIPTIONS["concept"])
    requirements_yaml: str = dspy.InputField(desc=FIELD_DESCRIPTIONS["requirements_yaml"])
    existing_vision: str = dspy.InputField(desc=FIELD_DESCRIPTIONS["existing_vision"])
    product_vision: str = dspy.OutputField(desc=FIELD_DESCRIPTIONS["product_vision"])
    product_owner_review: str = dspy.OutputField(desc=FIELD_DESCRIPTIONS["product_owner_review"])


class ProductOwner(dspy.Module):  # type: ignore[misc]
    """Concept and requirements in, product vision and review out, each a YAML text.

    Works with any model: a teacher under these instructions, a student that was trained under the contract `dspy`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.write = dspy.Predict(ProductOwnerSignature)

    def forward(self, concept: str, requirements_yaml: str, existing_vision: str = "") -> dspy.Prediction:
        """The prediction, with `product_vision` and `product_owner_review`."""
        # As training had them: without spaces around.
        return self.write(
            concept=concept.strip(),
            requirements_yaml=requirements_yaml.strip(),
            existing_vision=existing_vision.strip(),
        )

    async def aforward(self, concept: str, requirements_yaml: str, existing_vision: str = "") -> dspy.Prediction:
        """As `forward`, awaited."""
        return await self.write.acall(
            concept=concept.strip(),
            requirements_yaml=requirements_yaml.strip(),
            existing_vision=existing_vision.strip(),
        )
