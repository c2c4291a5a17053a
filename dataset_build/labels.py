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


def yes_no(number: int | None) -> str | None:
    """The answer that a source's 1 or 0 stands for; None for anything else."""
    return {1: "Yes", 0: "No"}.get(-1 if number is None else number)


# The eight feelings of the quickstart's emoji: the six of Ekman without disgust (drawn as sickness in emoji), love,
# sickness and neutral. Each is a single token after a space in the quickstart's language model.
EMOJI_FEELINGS = ("joy", "love", "sadness", "anger", "fear", "surprise", "sickness", "neutral")

# Communicative intents that person-gesture emoji stand for, named as in MIntRec2.0 where it has the intent.
GESTURE_INTENTS = ("Apologise", "Doubt", "Criticize", "Ask for help", "Refuse", "Agree", "Complain", "Inform")

# --- emotion ---------------------------------------------------------------------------------------------------------
# One canonical word per feeling, the noun. Adapters map the source's own spelling to it by name, never by index.

# Mikels et al. 2005 (EmoSet, FI; ArtEmis adds `something else`).
MIKELS = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
# Ekman's six and neutral (CAER, CAER-S, MELD, DFEW, RAF-DB, ExpW, FER2013).
EKMAN_NEUTRAL = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")

# How sources spell a canonical emotion (lower case). A source whose own words mean something else maps them itself.
EMOTION_SPELLINGS = {
    "angry": "anger", "ang": "anger",
    "disgusted": "disgust", "dis": "disgust",
    "fearful": "fear", "fea": "fear", "fear/fearful": "fear",
    "happy": "joy", "happiness": "joy", "hap": "joy",
    "sad": "sadness",
    "surprised": "surprise", "sur": "surprise",
    "neutrality": "neutral", "neu": "neutral",
    "worried": "worry",
    "frustrated": "frustration", "frustrate": "frustration", "fru": "frustration",
    "excited": "excitement", "exc": "excitement",
}  # fmt: skip

# Every canonical emotion that any source may yield; a new one is added here, in the open.
EMOTIONS = frozenset(MIKELS) | frozenset(EKMAN_NEUTRAL) | frozenset(EMOJI_FEELINGS) | frozenset(
    (
        "calm", "contempt", "excitement", "frustration", "ridicule", "worry", "something else",
        # EMOTIC's further categories, lower case
        "affection", "annoyance", "anticipation", "aversion", "confidence", "disapproval", "disconnection", "disquietment",
        "doubt or confusion", "embarrassment", "engagement", "esteem", "fatigue", "pain", "peace", "pleasure",
        "sensitivity", "suffering", "sympathy", "yearning",
    )
)  # fmt: skip


def emotion(native: str) -> str | None:
    """The canonical emotion that a source's word stands for; None for a word that stands for none."""
    word = native.strip().lower()
    word = EMOTION_SPELLINGS.get(word, word)
    return word if word in EMOTIONS else None


# --- intent ----------------------------------------------------------------------------------------------------------
# All 20 words of MIntRec are among the 30 of MIntRec2.0, spelled the same; `GESTURE_INTENTS` takes its own from there.
# The orders are those of the authors' lists.

MINTREC_INTENTS = (
    "Complain", "Praise", "Apologise", "Thank", "Criticize", "Agree", "Taunt", "Flaunt", "Joke", "Oppose", "Comfort",
    "Care", "Inform", "Advise", "Arrange", "Introduce", "Leave", "Prevent", "Greet", "Ask for help",
)  # fmt: skip
MINTREC2_INTENTS = (
    "Acknowledge", "Advise", "Agree", "Apologise", "Arrange", "Ask for help", "Asking for opinions", "Care", "Comfort",
    "Complain", "Confirm", "Criticize", "Doubt", "Emphasize", "Explain", "Flaunt", "Greet", "Inform", "Introduce",
    "Invite", "Joke", "Leave", "Oppose", "Plan", "Praise", "Prevent", "Refuse", "Taunt", "Thank", "Warn",
)  # fmt: skip

# Further spellings of these words (lower case): the data write Apologise, the papers' prose Apologize.
INTENT_SPELLINGS = {
    "apologize": "apologise",
    "criticise": "criticize",
    "ask for opinions": "asking for opinions",
}

_INTENTS = {word.lower(): word for word in (*MINTREC_INTENTS, *MINTREC2_INTENTS)}


def intent(native: str) -> str | None:
    """The canonical intent of MIntRec and MIntRec2.0 that a word stands for; None for a word that stands for none."""
    word = native.strip().lower()
    return _INTENTS.get(INTENT_SPELLINGS.get(word, word))


# Intentonomy's category names in the order of their ids, and the words a model is asked to choose from.
INTENTONOMY = {
    "Attractive": "Be attractive",
    "BeatCompete": "Beat others or compete",
    "Communicate": "Communicate or express oneself",
    "CreativeUnique": "Be creative and unique",
    "CuriousAdventurousExcitingLife": "Live a curious, adventurous and exciting life",
    "EasyLife": "Live an easy life",
    "EnjoyLife": "Enjoy life",
    "FineDesignLearnArt-Arch": "Appreciate fine design: architecture",
    "FineDesignLearnArt-Art": "Appreciate fine design: art",
    "FineDesignLearnArt-Culture": "Appreciate fine design: culture",
    "GoodParentEmoCloseChild": "Be a good parent, emotionally close to a child",
    "Happy": "Be happy",
    "HardWorking": "Work hard",
    "Harmony": "Live in harmony",
    "Health": "Be healthy",
    "InLove": "Be in love",
    "InLoveAnimal": "Love an animal",
    "InspirOthrs": "Inspire others",
    "ManagableMakePlan": "Keep things manageable and make plans",
    "NatBeauty": "Enjoy natural beauty",
    "PassionAbSmthing": "Be passionate about something",
    "Playful": "Be playful",
    "ShareFeelings": "Share feelings",
    "SocialLifeFriendship": "Have a social life and friends",
    "SuccInOccupHavGdJob": "Succeed at work, have a good job",
    "TchOthrs": "Teach others",
    "ThngsInOrdr": "Keep things in order",
    "WorkILike": "Do work one likes",
}
