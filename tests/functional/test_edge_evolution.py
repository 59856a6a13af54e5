import torch

from lsseg.functional import signed_distance
from lsseg.functional.edge_evolution import edge_evolve, towards_contour


def disc(radius, size=41):
    x = torch.arange(size) - size // 2
    return torch.hypot(x.float(), x.float()[:, None]) < radius


def ones(count=1):
    return torch.ones(count)


def test_the_contour_moves_along_the_velocity_to_where_it_points():
    """A disc grows, or shrinks, to the true contour, and stays there."""
    truth = disc(12.3)
    velocity, _ = towards_contour(truth[None])
    for start in (8.3, 16.3):
        phi = signed_distance(disc(start)[None])
        none = torch.zeros(1, 41, 41)
        moved = edge_evolve(phi, velocity, none, ones(), ones(), torch.full((1, 14), 0.4))
        assert ((moved[0] > 0) ^ truth).float().mean() < 0.02
        assert ((disc(start)) ^ truth).float().mean() > 0.1


def test_directions_point_to_the_contour_from_both_sides():
    mask = torch.zeros(1, 9, 12, dtype=torch.bool)
    mask[:, :, 6:] = True
    velocity, valid = towards_contour(mask)
    assert valid[0, :, 1:-1].all()
    assert (velocity[0, 0, :, 1:5] == 1).all()
    assert (velocity[0, 0, :, 7:11] == -1).all()
    assert not velocity[0, 1].any()


def test_no_contour_has_no_direction():
    masks = torch.stack([torch.zeros(5, 6, dtype=torch.bool), torch.ones(5, 6, dtype=torch.bool)])
    velocity, valid = towards_contour(masks)
    assert not valid.any()
    assert not velocity.any()
    assert towards_contour(masks[:0])[0].shape == (0, 2, 5, 6)


def test_curvature_shrinks_a_disc_where_it_is_modulated():
    phi = signed_distance(disc(12)[None])
    still = torch.zeros(1, 2, 41, 41)
    args = (ones(), ones(), torch.full((1, 20), 0.4))
    smaller = edge_evolve(phi, still, torch.ones(1, 41, 41), *args)
    same = edge_evolve(phi, still, torch.zeros(1, 41, 41), *args)
    torch.testing.assert_close(same, phi)
    # dr/dt = -1/r: r² falls by 2t = 16 from about 12²
    area = float((smaller > 0).sum())
    assert abs(area / torch.pi - (144 - 16)) < 8


def test_gradients():
    g = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()

    inputs = (random(2, 4, 5), random(2, 2, 4, 5), random(2, 4, 5), random(2), random(2), random(2, 2))
    assert torch.autograd.gradcheck(lambda *x: edge_evolve(*x, eta=0.3), inputs)
