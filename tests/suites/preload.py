"""Imported once in the server that processes of single entries fork from."""

import warnings

warnings.simplefilter("ignore")

import timm  # noqa: E402, F401
import torchvision  # noqa: E402, F401
import transformers  # noqa: E402

import gradood  # noqa: E402, F401

transformers.logging.set_verbosity_error()
