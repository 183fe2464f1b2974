from .pairs import top_pairs as top_pairs
from .tiles import Rows as Rows
from .tokens import top_tokens as top_tokens
