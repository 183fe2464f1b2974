from .embedding_space import EmbeddingSpace as EmbeddingSpace
from .masks import TokenMask as TokenMask
from .masks import ascii_tokens as ascii_tokens
from .masks import seen_in as seen_in
from .masks import well_trained as well_trained
from .masks import whole_words as whole_words
from .vocabulary import Vocabulary as Vocabulary
