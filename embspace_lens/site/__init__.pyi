from .feature_pages import explore_features as explore_features
from .pages import explore as explore
