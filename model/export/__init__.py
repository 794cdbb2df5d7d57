"""A model in the formats of other people's programs: GGUF for llama.cpp and Ollama, ONNX for onnxruntime.

Hugging Face's layouts are in model.pretrained and model.layouts.
"""
