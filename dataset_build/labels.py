"""Canonical label vocabularies per sub-task, and the display name of each sub-task.

Labels are mapped by name, never by index: loaders of the same set disagree about the order.
"""

from __future__ import annotations

SUB_TASK_NAMES = {
    "emo_c": "Emo-C (closed-set emotion)",
    "emo_o": "Emo-O (open-set emotion)",
    "intent": "Intent",
    "hate": "Hate",
    "humor": "Humor",
    "sarcasm": "Sarcasm",
}

YES_NO = ("Yes", "No")

# The eight feelings of the quickstart's emoji: the six of Ekman without disgust (drawn as sickness in emoji), love,
# sickness and neutral. Each is a single token after a space in the quickstart's language model.
EMOJI_FEELINGS = ("joy", "love", "sadness", "anger", "fear", "surprise", "sickness", "neutral")

# Communicative intents that person-gesture emoji stand for, named as in MIntRec2.0 where it has the intent.
GESTURE_INTENTS = ("Apologise", "Doubt", "Criticize", "Ask for help", "Refuse", "Agree", "Complain", "Inform")
