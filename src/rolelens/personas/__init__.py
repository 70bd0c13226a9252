"""Roles and traits over a model's own answers: their directions, and the space that they span."""

from rolelens.personas.answering import Asked, answered
from rolelens.personas.extraction import AnswerVectors, role_answers, trait_vectors
from rolelens.personas.judging import Judge, RubricJudge, SelfJudge
from rolelens.personas.space import PersonaSpace, persona_space

__all__ = [
    "AnswerVectors",
    "Asked",
    "Judge",
    "PersonaSpace",
    "RubricJudge",
    "SelfJudge",
    "answered",
    "persona_space",
    "role_answers",
    "trait_vectors",
]
