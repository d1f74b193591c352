from ._assignment import balanced_assignment
from ._cmoe import cmoe
from ._layer import AnalyticRouter, LearnedRouter, MoeLayer
from ._moefication import moefication
