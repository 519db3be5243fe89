"Clusters that any method should find."
import pytest
from conftest import DEEP, METHODS, four_kinds, tiny
from sklearn.metrics import adjusted_rand_score

from medstrat.training.registry import get_method


@pytest.mark.parametrize("method", METHODS)
def test_what_is_plain_is_found(method):
    x, y = four_kinds()
    more = dict(pretrain_epochs=40, pretrain_lr=3e-3) if "pretrain_epochs" in get_method(method).__dataclass_fields__ else {}
    if method == "GMVAE": more = dict(epochs=100, w_dim=4, prior_hidden=32)     # its clusters start anywhere: they need time to part
    a = tiny(method, **dict(dict(n_clusters=4, epochs=40, lr=3e-3, network="mlp"), **more)) if method in DEEP else tiny(method, n_clusters=4)
    assert adjusted_rand_score(y, a.fit_predict(x)) == 1
