from .pages import explore as explore
