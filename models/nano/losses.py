"""The losses that train nano: what each visual token lies on, and the answers.

Takes the model and a batch; gives scalars. Does not know how pictures are drawn or weights stepped.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from batches import Questions
from concepts import CONCEPTS
from packs import NOTHING, Pack
from scene import CELL, IGNORE, VIEW
from transformers.models.llama.modeling_llama import rotate_half
from words import Prompts

PLACED_BY = 2  # layers of the text model after which a visual token knows where it lies
MENTIONED_BY = 4  # and after which a thing's name knows where the thing lies, and how large it is
RELATED_BY = 5  # and after which the name knows how what was named before it lies to that
LOOKING = (2, 3)  # layers between the two, in one of which a head looks from the name to the thing
LOOKING_BACK = (4,)  # layers in one of which a head looks from a name to the name before it
LOOKING_LAST = (5,)  # and from where the answer begins to the second name, which knows it by then
BACKGROUND_WEIGHT = 0.15  # of a token that lies on no drawing, in the sprite loss


class Readout:
    """What a linear map reads off hidden states at its best: least squares over the last steps,
    solved and not learned, since a map that is learned from a few names a step jitters by more than
    what it is to read.
    """

    KEPT = 0.98  # of what was seen, at each step
    RIDGE = 0.003  # of the number seen; hidden states are normed to a variance of 1
    ENOUGH = 4  # times as many as there are unknowns, before anything is read

    def __init__(self, hidden: int, outputs: int, device: str) -> None:
        size = hidden + 1
        self._xx = torch.zeros(outputs, size, size, device=device)
        self._xy = torch.zeros(outputs, size, 1, device=device)
        self._count = torch.zeros(outputs, device=device)

    def loss(self, hidden: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Squared error where the truth is no NaN, by the map that was best before; then that is
        told of these. hidden [B, N, D], truth [B, N, K]. The gradient goes into `hidden` alone.
        """
        x = F.pad(F.layer_norm(hidden, hidden.shape[-1:]), (0, 1), value=1.0)
        missed = []
        for k in range(truth.shape[-1]):
            known = truth[..., k].isfinite()
            if not known.any():
                continue
            mine, value = x[known], truth[..., k][known]
            if self._count[k] > self.ENOUGH * x.shape[-1]:
                ridge = (1 + self.RIDGE * self._count[k]) * torch.eye(x.shape[-1]).to(x)
                root = torch.linalg.cholesky(self._xx[k] + ridge)
                best = torch.cholesky_solve(self._xy[k], root)  # [D + 1, 1]
                missed.append(F.mse_loss((mine @ best)[:, 0], value))
            seen = mine.detach()
            self._xx[k] = self.KEPT * self._xx[k] + seen.T @ seen
            self._xy[k] = self.KEPT * self._xy[k] + seen.T @ value[:, None]
            self._count[k] = self.KEPT * self._count[k] + len(seen)
        return torch.stack(missed).mean() if missed else hidden.new_zeros(())


class Losses:
    """The model with its auxiliary heads, none of which is part of the checkpoint."""

    def __init__(self, model: Any, prompts: Prompts, device: str, drawings: int) -> None:
        self.model, self.prompts, self.device = model, prompts, device
        self.scale = torch.nn.Parameter(torch.tensor(10.0, device=device))
        self.bias = torch.nn.Parameter(torch.full((len(CONCEPTS),), -4.0, device=device))
        hidden = model.config.text_config.hidden_size
        self.cells = torch.nn.Parameter(torch.zeros(2, hidden, device=device))
        self.places = Readout(hidden, 3, device)
        self.mentions = Readout(hidden, 4, device)
        self.apart = Readout(hidden, 3, device)
        self.sprites = torch.nn.Parameter(torch.zeros(drawings + 1, hidden, device=device))
        names = [prompts.ids(" " + c.name) for c in CONCEPTS]
        width = max(map(len, names))
        self.name_ids = torch.tensor([n + [0] * (width - len(n)) for n in names], device=device)
        self.name_mask = torch.tensor(
            [[1.0] * len(n) + [0.0] * (width - len(n)) for n in names], device=device
        )

    @property
    def text(self) -> Any:
        """The text model without its head."""
        return self.model.model.text_model

    def positions(self, rows: int, cols: int, start: int, after: torch.Tensor) -> torch.Tensor:
        """Rope positions of a prefix of `start` tokens and of what stands `after` places behind it,
        as the text model takes them.
        """
        return torch.cat([torch.arange(start, device=self.device), start + after])[None]

    def visual_tokens(self, pixels: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """uint8 [N, 3, S, S] -> [N, T, D]; with `kept` [N, K], indices of visual tokens, the tower
        sees the patches of those alone -> [N, K, D].

        Dropping patches for most of a training is Li et al., Scaling Language-Image Pre-training
        via Masking (FLIP), 2023; whole cells, so that the pixel shuffle still finds its squares.
        """
        x = pixels.to(self.device).float().div_(127.5).sub_(1.0)
        core = self.model.model
        tower = core.vision_model
        if kept is None:
            out: torch.Tensor = core.connector(tower(pixel_values=x).last_hidden_state)
            return out
        scale = self.model.config.scale_factor
        side = x.shape[-1] // tower.patch_size
        everywhere = torch.ones(len(x), side, side, dtype=torch.bool, device=self.device)
        patches = tower.embeddings(pixel_values=x, patch_attention_mask=everywhere)
        cells = patches.unflatten(1, (side // scale, scale, side // scale, scale))
        cells = cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [N, T, scale^2, D]
        rows = torch.arange(len(x), device=self.device)[:, None]
        seen = cells[rows, kept].flatten(1, 2)
        hidden = tower.post_layernorm(tower.encoder(inputs_embeds=seen).last_hidden_state)
        shuffled = hidden.unflatten(1, (kept.shape[1], -1)).flatten(2)
        out = core.connector.modality_projection(shuffled)
        return out

    def cell_loss(self, tokens: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Where in its view each visual token lies, which labels alone make a tower forget: squared
        error of down and across. tokens [N, T, D], cells [N, T] counted row by row.
        """
        side = VIEW // CELL
        where = torch.stack([cells // side, cells % side], -1).to(tokens.dtype) / (side - 1) - 0.5
        found = F.layer_norm(tokens, tokens.shape[-1:]) @ self.cells.T
        return F.mse_loss(found, where)

    def dense_loss(self, tokens: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """Each visual token against the mean word embedding of each concept. tokens [N, T, D],
        dense [N, T, C].
        """
        table = self.text.embed_tokens(self.name_ids) * self.name_mask[..., None]
        words = F.normalize(table.sum(1), dim=-1)  # [C, D]
        logits = self.scale * F.normalize(tokens, dim=-1) @ words.T + self.bias
        wanted = (dense == 1).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        weight = (dense != IGNORE).to(logits.dtype) * (1 + 4 * wanted)
        return (loss * weight).sum() / weight.sum()

    def sprite_loss(self, tokens: torch.Tensor, sprite: torch.Tensor) -> torch.Tensor:
        """Which drawing a visual token lies on: cross-entropy over all of them and the background.
        tokens [N, T, D], sprite [N, T].

        Finer labels than the questions need: one concept is a dozen drawings that look nothing like
        each other.
        """
        logits = F.layer_norm(tokens, tokens.shape[-1:]) @ self.sprites.T
        weight = (sprite > 0) + BACKGROUND_WEIGHT * (sprite == 0)
        loss = F.cross_entropy(
            logits.flatten(0, 1), sprite.clamp_min(0).flatten(), reduction="none"
        )
        return (loss * weight.flatten()).sum() / weight.sum()

    def answer_loss(
        self, tokens: torch.Tensor, rows: int, cols: int, asked: Questions
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cross-entropy over the whole vocabulary at the end of each packed branch, and of each
        blind prompt. tokens [B, V, T, D].
        """
        count, questions = asked.answers.shape
        core = self.text
        prefix_ids = torch.tensor(self.prompts.prefix(rows, cols), device=self.device)
        prefix = core.embed_tokens(prefix_ids).expand(count, -1, -1).clone()
        prefix[:, prefix_ids == self.prompts.image_id] = tokens.flatten(1, 2)
        ids = torch.from_numpy(asked.branches).to(self.device)
        length, start = ids.shape[2], len(prefix_ids)
        hidden = torch.cat([prefix, core.embed_tokens(ids.reshape(count, -1))], 1)
        total = hidden.shape[1]
        place = torch.arange(total, device=self.device)
        branch = torch.where(place < start, -1, (place - start) // length)
        seen = (place[None] <= place[:, None]) & (
            (branch[None] == -1) | (branch[None] == branch[:, None])
        )
        mask = torch.zeros(total, total, device=self.device).masked_fill(
            ~seen, torch.finfo(torch.float32).min
        )
        out = core(
            inputs_embeds=hidden,
            attention_mask=mask[None, None].expand(count, 1, -1, -1),
            position_ids=self.positions(rows, cols, start, (place[start:] - start) % length),
            use_cache=False,
        ).last_hidden_state
        ends = (
            torch.from_numpy(asked.ends).to(self.device)
            + start
            + length * torch.arange(questions, device=self.device)
        )
        logits = self.model.lm_head(
            out.gather(1, ends[..., None].expand(-1, -1, out.shape[-1]))
        )  # [B, Q, vocabulary]
        answers = torch.from_numpy(asked.answers).to(self.device)
        target = torch.where(answers == 1, self.prompts.yes[0], self.prompts.no[0])
        seen_loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        margin = logits[..., self.prompts.yes[0]] - logits[..., self.prompts.no[0]]
        blind = core(
            input_ids=torch.from_numpy(asked.blind).to(self.device), use_cache=False
        ).last_hidden_state
        last = blind[
            torch.arange(len(blind), device=self.device),
            torch.from_numpy(asked.blind_ends).to(self.device),
        ]
        logp = F.log_softmax(self.model.lm_head(last), -1)
        rate = torch.from_numpy(asked.blind_targets).to(self.device, logp.dtype)
        blind_loss = -(
            rate * logp[:, self.prompts.yes[0]] + (1 - rate) * logp[:, self.prompts.no[0]]
        ).mean()
        return seen_loss, blind_loss, margin.detach()

    def packed_loss(
        self,
        tokens: torch.Tensor,
        prefix_ids: list[int],
        asked: Pack,
        places: torch.Tensor,
        lies: torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Cross-entropy over the whole vocabulary of what is to be learned, by kind of task; and
        the logits [N, vocabulary] with the kinds [N] of all those tokens. tokens [B, N, D] are the
        visual tokens of the prefix, places [N, 3] in which picture and where they lie in it, lies
        bool [B, N, C] which concepts they lie on.

        A visual token does not say in which tile it lies; attention to the tiles' own tokens can.
        The loss "place" asks it of each visual token early on; "look" has a head look from the name
        of a thing to the tokens that lie on it, "mention" asks the name where that is; "back" has a
        head look from a second name to the first, "apart" asks how the two things lie, and "early"
        what the answer will be; "last" has a head look there from where the answer begins.
        """
        core = self.text
        head = torch.tensor(prefix_ids, device=self.device)
        count, start = len(tokens), len(prefix_ids)
        prefix = core.embed_tokens(head).expand(count, -1, -1).clone()
        prefix[:, head == self.prompts.image_id] = tokens
        ids, branch, place, target, kind = (
            torch.from_numpy(v).to(self.device)
            for v in (asked.ids, asked.branch, asked.place, asked.target, asked.kind)
        )
        hidden = torch.cat([prefix, core.embed_tokens(ids)], 1)
        owner = torch.cat([branch.new_full((count, start), -1), branch], 1)
        order = torch.arange(hidden.shape[1], device=self.device)
        seen = (order[None] <= order[:, None]) & (
            (owner[:, None] == -1) | (owner[:, None] == owner[:, :, None])
        )  # [B, query, key]
        mask = torch.zeros(seen.shape, device=self.device).masked_fill(
            ~seen, torch.finfo(torch.float32).min
        )
        at = torch.arange(start, device=self.device).expand(count, -1)
        rope = torch.cat([at, start + place], 1)
        out = core(
            inputs_embeds=hidden,
            attention_mask=mask[:, None],
            position_ids=rope,
            use_cache=False,
            output_hidden_states=True,
        )
        wanted = target != NOTHING
        logits = self.model.lm_head(out.last_hidden_state[:, start:][wanted])
        each = F.cross_entropy(logits, target[wanted], reduction="none")
        kinds = kind[wanted]
        losses = {name: each[kinds == i].mean() for i, name in enumerate(asked.kinds)}
        early = out.hidden_states[PLACED_BY][:, :start][:, head == self.prompts.image_id]
        where = (places - 0.5).to(early).expand(count, -1, -1)
        losses["place"] = self.places.loss(early, where)
        about = torch.from_numpy(asked.about).to(self.device)
        on = torch.zeros(*about.shape, start, dtype=torch.bool, device=self.device)
        on[:, :, head == self.prompts.image_id] = (
            lies.transpose(1, 2).gather(
                1, about.clamp_min(0)[..., None].expand(-1, -1, lies.shape[1])
            )
            & (about >= 0)[..., None]
        )
        on = F.pad(on, (0, about.shape[1]))  # [B, M, S]
        if on.any():
            losses["look"] = self._look_loss(out.hidden_states, rope, mask, on, LOOKING)
        back = torch.from_numpy(asked.before).to(self.device)
        if (back >= 0).any():
            first = torch.zeros_like(on).scatter(2, start + back.clamp_min(0)[..., None], True)
            first &= (back >= 0)[..., None]
            losses["back"] = self._look_loss(out.hidden_states, rope, mask, first, LOOKING_BACK)
            second = (back >= 0)[:, None] & (branch[:, None] == branch[..., None])
            second &= wanted[..., None]
            losses["last"] = self._look_loss(
                out.hidden_states, rope, mask, F.pad(second, (start, 0)), LOOKING_LAST
            )
        told = torch.from_numpy(asked.where).to(self.device) - 0.5
        if told.isfinite().any():
            later = out.hidden_states[MENTIONED_BY][:, start:]
            losses["mention"] = self.mentions.loss(later, told)
        told = torch.from_numpy(asked.apart).to(self.device)
        if told.isfinite().any():
            later = out.hidden_states[RELATED_BY][:, start:]
            losses["apart"] = self.apart.loss(later, told[..., :3])
            holds = told[..., 3]
            if (asks := holds.isfinite()).any():
                losses["early"] = self._early_loss(later[asks], holds[asks])
        return losses, logits.detach(), kinds

    def _early_loss(self, hidden: torch.Tensor, holds: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of yes and no where the answer is not due yet. hidden [N, D], holds [N].

        A map that is solved for asks nothing of what is not there at all, and then nothing comes;
        the head that reads the answer is never nothing.
        """
        seen = self.text.norm(hidden)
        words = self.model.lm_head.weight
        margin = seen @ (words[self.prompts.yes[0]] - words[self.prompts.no[0]])
        return F.binary_cross_entropy_with_logits(margin, holds.to(margin.dtype))

    def _look_loss(
        self,
        states: tuple[torch.Tensor, ...],
        rope: torch.Tensor,
        mask: torch.Tensor,
        on: torch.Tensor,
        layers: tuple[int, ...],
    ) -> torch.Tensor:
        """Minus the logarithm of how much of its attention the one head of some layers that looks
        there most turns to where a token shall look. states [B, S, D] after each layer, rope
        [B, S], mask [B, S, S] added to attention, on bool [B, M, S]: the token at S - M + m shall
        look at those.

        Of one head and not of all together: many that look there a little bring nothing home but a
        mean of everything that lies around.
        """
        picture, name = on.any(-1).nonzero(as_tuple=True)
        asking = mask.shape[1] - on.shape[1] + name
        wanted = on[picture, name]  # [K, S]
        cos, sin = self.text.rotary_emb(states[0], rope)  # [B, S, H]
        most = torch.zeros(len(name), device=self.device)
        for index in layers:
            layer = self.text.layers[index]
            attention = layer.self_attn
            x = layer.input_layernorm(states[index])
            width = attention.head_dim
            q = attention.q_proj(x[picture, asking]).unflatten(-1, (-1, width))  # [K, heads, H]
            k = attention.k_proj(x).unflatten(-1, (-1, width))  # [B, S, groups, H]
            turn = cos[picture, asking][:, None], sin[picture, asking][:, None]
            q = q * turn[0] + rotate_half(q) * turn[1]  # type: ignore[no-untyped-call]
            k = k * cos[:, :, None] + rotate_half(k) * sin[:, :, None]  # type: ignore[no-untyped-call]
            q = q.unflatten(1, (k.shape[2], -1))  # [K, groups, heads of a group, H]
            scores = torch.einsum("kgjh,ksgh->kgjs", q, k[picture]) * attention.scaling
            seen = (scores + mask[picture, asking][:, None, None]).softmax(-1)
            there = (seen * wanted[:, None, None]).sum(-1).flatten(1)
            most = torch.maximum(most, there.amax(1))
        return -torch.log(most + 1e-6).mean()
