from .overlap import related_pairs as related_pairs
from .recall import hidden_state_recall as hidden_state_recall
from .truncation import keep_k as keep_k
