"Networks: for every size of images, by every name, and what is refused."
import numpy as np
import pytest
import torch
from conftest import images, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medstrat.vae.networks import (
    ACTIVATIONS,
    NETWORKS,
    ConvDecoder,
    Encoder,
    ResizeDecoder,
    activation_layer,
    conv_body,
    halved_sides,
    make_body,
    make_decoder,
    mlp_body,
    mlp_decoder,
    norm_layer,
    to_network,
)

few = settings(max_examples=25, deadline=None)
sizes = st.integers(8, 64)


@few
@given(h=sizes, w=sizes, c=st.sampled_from([1, 3]), channels=st.lists(st.integers(1, 4), min_size=1, max_size=3), norm=st.sampled_from(["batch", "none"]),
       d=st.integers(1, 5))
def test_conv_networks_return_the_input_size(h, w, c, channels, norm, d):
    shape = (h, w, c)
    encoder = Encoder(conv_body(shape, tuple(channels), norm), shape, (d, d)).eval()
    decoder = ConvDecoder(d + 2, shape, tuple(channels), norm).eval()
    mu, logvar = encoder(torch.rand(3, c, h, w))
    assert mu.shape == logvar.shape == (3, d)
    out = decoder(torch.cat([mu, torch.ones(3, 2)], 1))
    assert out.shape == (3, c, h, w) and out.dtype == torch.float32 and out.isfinite().all()


@few
@given(h=sizes, w=sizes, c=st.sampled_from([1, 3]), hidden=st.lists(st.integers(1, 6), min_size=1, max_size=3), d=st.integers(1, 5))
def test_mlp_networks_return_the_input_size(h, w, c, hidden, d):
    shape = (h, w, c)
    z, = Encoder(mlp_body(shape, tuple(hidden)), shape, (d,))(torch.rand(2, c, h, w))
    assert z.shape == (2, d) and mlp_decoder(d, shape, tuple(hidden))(z).shape == (2, c, h, w)


def test_decoder_is_not_blind_to_its_input():
    "Every pixel of the decoder's output depends on z, also at the border of odd sizes"
    decoder = ConvDecoder(3, (13, 11, 1), (8, 8), "none", "leaky_relu")
    a, b = decoder(torch.zeros(1, 3)), decoder(torch.ones(1, 3) * 3)
    assert ((a - b).abs() > 0).all()


def test_too_many_blocks_say_what_to_do():
    assert halved_sides(224, 5) == [224, 112, 56, 28, 14, 7]
    with pytest.raises(ValueError, match="at least 16 pixels a side, got 8.*fewer channels"): conv_body((8, 30, 1), (2, 2, 2, 2))
    with pytest.raises(ValueError, match="at least 16 pixels"): tiny(channels=(2, 2, 2, 2), image_size=8).fit(images(8, 8))


def test_encoder_leaves_a_module_as_it_was():
    body = conv_body((8, 8, 1), (2,), "batch")
    body.eval()
    before = {k: v.clone() for k, v in body.state_dict().items()}
    body.train(); Encoder(body, (8, 8, 1), (2,))
    assert body.training and all(v.equal(before[k]) for k, v in body.state_dict().items())


def test_encoder_that_loses_the_batch_is_refused():
    class Lost(nn.Module):
        def forward(self, x): return x.flatten()
    with pytest.raises(ValueError, match="batch dimension first"): Encoder(Lost(), (8, 8, 1), (2,))


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 15, 3), (32, 32, 3), (31, 128, 1)])
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_by_name(network, shape):
    for norm, activation in (("batch", "relu"), ("none", "gelu")):
        body, decoder = make_body(network, shape, (4, 8, 8), (20, 10), norm, activation), make_decoder(network, 5, shape, (4, 8, 8), (20, 10), norm, activation)
        z, = Encoder(body, shape, (5,))(torch.rand(2, shape[2], *shape[:2]))
        assert decoder(z).shape == (2, shape[2], *shape[:2])
        assert any(isinstance(m, nn.BatchNorm2d) for m in body) == (norm == "batch" and network != "mlp")


def test_the_resizing_decoder_has_no_transposed_convolution():
    decoder = make_decoder("resize", 3, (13, 11, 1), (8, 8), (), "none")
    assert isinstance(decoder, ResizeDecoder) and not any(isinstance(m, nn.ConvTranspose2d) for m in decoder.modules())
    assert ((decoder(torch.zeros(1, 3)) - decoder(torch.ones(1, 3) * 3)).abs() > 0).all()


def test_words_for_layers():
    assert all(isinstance(activation_layer(kind), layer) for kind, layer in ACTIVATIONS.items()) and isinstance(norm_layer("none", 3), nn.Identity)
    with pytest.raises(ValueError, match="activation='gleu' is unknown.*relu, leaky_relu, gelu, none"): activation_layer("gleu")
    with pytest.raises(ValueError, match="norm='btach' is unknown.*'batch' or 'none'"): norm_layer("btach", 3)


@pytest.mark.parametrize("channels_last", [True, False])
def test_what_the_network_sees(channels_last):
    x = torch.randint(0, 256, (3, 5, 4, 3), dtype=torch.uint8)
    seen = to_network(x, channels_last)
    assert seen.shape == (3, 3, 5, 4) and seen.dtype == torch.float32 and seen.is_contiguous() != channels_last
    torch.testing.assert_close(seen, torch.from_numpy(np.moveaxis(x.numpy() / np.float32(255), -1, 1)))
    assert to_network(x / 255, channels_last).equal(seen) and to_network(f := torch.randn(3, 7), channels_last) is f
