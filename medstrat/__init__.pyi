# The public face: what `from medstrat import …` offers. Read by editors and type checkers, and by lazy_loader at run time.
__version__: str

from .data.images import ImageSet as ImageSet
from .data.pictures import plot_prototypes as plot_prototypes
from .data.sources import list_datasets as list_datasets
from .data.sources import load_dataset as load_dataset
from .data.splits import split as split
from .evaluation.association import associations as associations
from .evaluation.metrics import Encoded as Encoded
from .evaluation.protocol import evaluate as evaluate
from .methods.baselines import AEKMeans as AEKMeans
from .methods.baselines import PCAKMeans as PCAKMeans
from .methods.baselines import PixelKMeans as PixelKMeans
from .methods.baselines import VAEKMeans as VAEKMeans
from .methods.cdvade import CDVaDE as CDVaDE
from .methods.contrastive import ContrastiveAE as ContrastiveAE
from .methods.dec import DEC as DEC
from .methods.dec import IDEC as IDEC
from .methods.dvc import DVC as DVC
from .methods.dvc import DVC2 as DVC2
from .methods.gmvae import GMVAE as GMVAE
from .methods.transfer import FeatureKMeans as FeatureKMeans
from .methods.transfer import Transfer as Transfer
from .methods.vade import VaDE as VaDE
from .methods.vaesim import VAESim as VAESim
from .parts.figures import embed_2d as embed_2d
from .parts.figures import plot_embedding as plot_embedding
from .runs.tables import compare as compare
from .runs.tables import read_runs as read_runs
from .training.registry import get_method as get_method
from .training.registry import list_methods as list_methods
from .training.saving import load_model as load_model

__all__: list[str]
