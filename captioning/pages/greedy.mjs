// Greedy decoding with the rules that a captioner was exported with, in the order of captioning/model/generation.

/** What the rules make of the next token's scores, in place; `tokens` are the caption's so far, without BOS. */
export function ruled(scores, tokens, rules) {
  if (rules.repetition_penalty !== 1) {
    const penalty = Math.fround(rules.repetition_penalty);
    for (const token of new Set([rules.bos, ...tokens])) {
      scores[token] = scores[token] < 0 ? scores[token] * penalty : scores[token] / penalty;
    }
  }
  const size = rules.no_repeat_ngram_size;
  if (size) {
    const latest = tokens.slice(tokens.length - size + 1).join();
    for (let end = size; size <= tokens.length && end <= tokens.length; end++) {
      if (size === 1 || tokens.slice(end - size, end - 1).join() === latest) scores[tokens[end - 1]] = -Infinity;
    }
  }
  for (const ids of rules.banned_token_ids) {
    const before = ids.length - 1;
    const begun = before <= tokens.length && ids.slice(0, -1).join() === tokens.slice(tokens.length - before).join();
    if (begun) scores[ids[before]] = -Infinity;
  }
  if (tokens.length < rules.prefix_token_ids.length + rules.min_new_tokens) {
    for (const end of rules.ends) scores[end] = -Infinity;
  }
  return scores;
}

export function largest(scores) {
  let best = 0;
  for (let i = 1; i < scores.length; i++) if (scores[i] > scores[best]) best = i;
  return best;
}

/** The logarithm of a token's probability among all, by their logits. */
export function logProbability(logits, token) {
  const most = logits[largest(logits)];
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - most);
  return logits[token] - most - Math.log(sum);
}

/**
 * The likeliest token after the likeliest token, as the rules let it.
 *
 * @param {(token: number) => Promise<{logits: Float32Array, looks: Float32Array}>} step feeds a token.
 * @param {object} rules `bos`, `ends`, `max_new_tokens` and what `ruled` reads.
 * @returns {Promise<{token: number, logProbability: number, looks: Float32Array}[]>} the last one ends the caption,
 *   unless it was cut off at the most tokens.
 */
export async function decoded(step, rules) {
  const chosen = [], longest = rules.prefix_token_ids.length + rules.max_new_tokens;
  for (let last = rules.bos; chosen.length < longest;) {
    const { logits, looks } = await step(last);
    const forced = rules.prefix_token_ids[chosen.length];
    const token = forced ?? largest(ruled(logits.slice(), chosen.map((each) => each.token), rules));
    chosen.push({ token, logProbability: logProbability(logits, token), looks, forced: forced !== undefined });
    if (rules.ends.includes(token)) break;
    last = token;
  }
  return chosen;
}

/** Groups of a caption's tokens that make a word each: it goes from one blank to the next. `[[0, 1], [2]]`. */
export function wordsIn(tokens, beginsWord) {
  const groups = [];
  tokens.forEach((token, place) => {
    if (!groups.length || beginsWord(token)) groups.push([]);
    groups.at(-1).push(place);
  });
  return groups;
}
