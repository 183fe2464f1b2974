from .columns import GLOSSARY as GLOSSARY
from .columns import Column as Column
from .frames import tidy as tidy
