"""EmoLLM as a transformers model: vision tower, Multi-perspective Visual Projection, language model."""
