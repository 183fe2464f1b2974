from .components import list_components as list_components
from .directions import read_directions as read_directions
from .heads import read_ov as read_ov
from .heads import read_qk as read_qk
from .heads import read_subheads as read_subheads
from .neurons import read_neurons as read_neurons
from .singular_directions import read_singular as read_singular
from .token_search import search_token as search_token
