"""What directions are made of: features of sparse autoencoders, and parts of the model."""

from rolelens.features.autoencoder import SparseAutoencoder
from rolelens.features.content import content_tokens, mean_features
from rolelens.features.contrast import FeatureContrast, feature_contrast, srps
from rolelens.features.files import load_sae, save_sae
from rolelens.features.parts import Part
from rolelens.features.patching import Attribution, attribute
from rolelens.features.reading import decoder_cosines
from rolelens.features.training import fit_topk, train_sae

__all__ = [
    "Attribution",
    "FeatureContrast",
    "Part",
    "SparseAutoencoder",
    "attribute",
    "content_tokens",
    "decoder_cosines",
    "feature_contrast",
    "fit_topk",
    "load_sae",
    "mean_features",
    "save_sae",
    "srps",
    "train_sae",
]
