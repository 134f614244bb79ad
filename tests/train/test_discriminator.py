"""The metric discriminator: published size, bounded scores, masked targets, and a use: it learns to rank."""

import pytest
import torch

from clearstate.train.discriminator import MetricDiscriminator, convert, discriminator_loss, metric_loss, start_from


def test_it_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in MetricDiscriminator().parameters()) == 181_650


def test_scores_lie_between_zero_and_one_for_any_length():
    judge = MetricDiscriminator()
    for frames in (32, 100, 321):
        scores = judge(torch.rand(2, frames, 201), torch.rand(2, frames, 201))
        assert scores.shape == (2,) and ((scores > 0) & (scores < 1)).all()


def test_too_short_an_item_says_to_make_it_longer():
    with pytest.raises(ValueError, match=r"16 frames.*data\.seconds"):
        MetricDiscriminator()(torch.rand(1, 16, 201), torch.rand(1, 16, 201))


def test_the_losses_follow_their_formulas():
    clean, judged = torch.tensor([0.9, 0.8]), torch.tensor([0.5, 0.1])
    target, known = torch.tensor([0.4, 0.3]), torch.tensor([True, True])
    loss = discriminator_loss(clean, judged, target, known)
    assert loss.tolist() == pytest.approx([0.1**2 + 0.1**2, 0.2**2 + 0.2**2])
    assert metric_loss(judged).tolist() == pytest.approx([0.25, 0.81])


def test_an_item_without_a_target_is_masked_and_the_others_are_not():
    clean = torch.tensor([0.9, 0.8], requires_grad=True)
    judged = torch.tensor([0.5, 0.1], requires_grad=True)
    loss = discriminator_loss(clean, judged, torch.tensor([0.4, 0.0]), torch.tensor([True, False]))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.02, 0.04])
    assert judged.grad.tolist() == pytest.approx([0.2, 0.0])


def test_spectral_norms_bound_the_weights():
    judge = MetricDiscriminator()
    for _ in range(20):  # the estimate of the largest singular value sharpens with each pass
        judge(torch.rand(1, 64, 64), torch.rand(1, 64, 64))
    for layer in judge.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            assert torch.linalg.svdvals(layer.weight.flatten(1))[0].item() == pytest.approx(1.0, abs=0.1)


def test_it_learns_the_scores_it_is_given():
    judge = MetricDiscriminator()
    optimiser = torch.optim.AdamW(judge.parameters(), lr=5e-3)
    clean = torch.rand(4, 40, 1) * torch.rand(4, 1, 40)
    share = torch.tensor([0.1, 0.3, 0.6, 0.9])
    candidate = (1 - share[:, None, None]) * clean + share[:, None, None] * torch.rand(4, 40, 40)
    for _ in range(100):
        loss = discriminator_loss(judge(clean, clean), judge(clean, candidate), 1 - share, share > 0).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    judge.eval()
    with torch.no_grad():  # 0.15: half of the smallest distance between two targets, with dropout in the training
        torch.testing.assert_close(judge(clean, candidate), 1 - share, rtol=0, atol=0.15)
        torch.testing.assert_close(judge(clean, clean), torch.ones(4), rtol=0, atol=0.15)


# --- published weights -----------------------------------------------------------------------------------------------


def published_discriminator() -> torch.nn.Module:
    """The published layers on (b, 2, f, t), with the older form of spectral norm, under their names."""

    class Slope(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor([0.7]))

        def forward(self, x):
            return torch.sigmoid(self.slope * x)

    def normed(layer: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.utils.spectral_norm(layer)

    layers: list[torch.nn.Module] = []
    for inputs, outputs in ((2, 16), (16, 32), (32, 64), (64, 128)):
        layers.append(normed(torch.nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)))
        layers += [torch.nn.InstanceNorm2d(outputs, affine=True), torch.nn.PReLU(outputs)]
    layers += [torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(), normed(torch.nn.Linear(128, 64))]
    layers += [torch.nn.Dropout(0.3), torch.nn.PReLU(64), normed(torch.nn.Linear(64, 1)), Slope()]
    network = torch.nn.Module()
    network.layers = torch.nn.Sequential(*layers)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network.train()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm:FutureWarning")
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "training state"])
def test_a_published_discriminator_judges_the_same_here(tmp_path, wrapped):
    theirs = published_discriminator()
    clean, candidate = torch.rand(2, 2, 40, 70)  # (b, t, f) twice
    pair = torch.stack([clean, candidate], 1).mT  # (b, 2, f, t)
    with torch.no_grad():
        theirs.layers(pair)  # one step of the power iteration
        expected = theirs.eval().layers(pair)[:, 0]
    state = theirs.state_dict()
    torch.save({"discriminator": state, "steps": 5} if wrapped else state, tmp_path / "d.pth")
    folder = convert(tmp_path / "d.pth", tmp_path / "weights").folder
    ours = MetricDiscriminator()
    start_from(ours, folder)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(clean, candidate), expected, atol=1e-6, rtol=1e-5)
        again = ours.train().state_dict()
        ours.eval()(clean, candidate)
    for name, value in again.items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    with pytest.raises(FileExistsError, match="contains a discriminator already"):
        convert(tmp_path / "d.pth", tmp_path / "weights")


def test_a_checkpoint_of_something_else_is_refused_and_nothing_is_written(tmp_path):
    torch.save({"layers.0.weight_orig": torch.zeros(3)}, tmp_path / "d.pth")
    with pytest.raises(ValueError, match=r"layers\.0\.weight_orig is \(3,\), expected \(16, 2, 4, 4\)"):
        convert(tmp_path / "d.pth", tmp_path / "weights")
    assert not (tmp_path / "weights").exists()
    with pytest.raises(FileNotFoundError, match="clearstate convert CHECKPOINT --to discriminator"):
        start_from(MetricDiscriminator(), tmp_path)
