from .batches import TokenBatch as TokenBatch
from .batches import token_batches as token_batches
from .pooling import PooledHead as PooledHead
from .states import HiddenStates as HiddenStates
from .states import hidden_states as hidden_states
from .texts import read_labelled as read_labelled
from .texts import read_texts as read_texts
