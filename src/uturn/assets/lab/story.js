// The story of arXiv:2402.16991 in five steps. Each sets the state of the page.

const GRAMMAR = { v: 32, m: 6, s: 2, L: 6, seed: 0, string: 0, draw: 0, clones: 8, clone: 0 };

export const STORY = [
  {
    title: "Data with a hierarchy",
    text:
      "A class (top) becomes two symbols by a rule, each of these two symbols again, down to a string of 64 leaves. " +
      "Every symbol has 6 rules, drawn at random once. Without noise, every symbol of the tree can be read off the string.",
    set: { ...GRAMMAR, channel: "masking", noise: 0, view: "belief" },
  },
  {
    title: "A little noise",
    text:
      "A part of the leaves is masked, then drawn back from the exact posterior: a U-turn. The rules repair most of the " +
      "damage. What changes (red) are single leaves and small branches; the class stays.",
    set: { ...GRAMMAR, channel: "masking", noise: 0.2, view: "changes" },
  },
  {
    title: "The class is lost",
    text:
      "With more noise many reconstructions are strings of another class. Belief in the class falls from near 1 to near 0 " +
      "in a narrow range of noise, where whole branches change together. This is the phase transition, rounded here by the " +
      "64 leaves.",
    set: { ...GRAMMAR, channel: "masking", noise: 0.42, view: "changes" },
  },
  {
    title: "New data from old parts",
    text:
      "Beyond the transition the order of the levels is inverted: the class is the first thing to be forgotten, the leaves " +
      "the last. A U-turn makes a new datum that shares low-level features with the old one.",
    set: { ...GRAMMAR, channel: "masking", noise: 0.6, view: "changes", clone: 1 },
  },
  {
    title: "Why: a fixed point",
    text:
      "In the ε-process one step up the tree is a map F of the belief. Above its unstable fixed point p* belief grows from " +
      "level to level, below it belief dies. The class is lost at ε* = 0.834, where the line of the phase diagram is " +
      "crossed; with more than 16 rules a symbol, at any noise.",
    set: { ...GRAMMAR, channel: "epsilon", noise: 0.83, view: "belief" },
  },
];
