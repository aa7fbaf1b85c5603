"""EcoDatum's ensemble: labeling functions vote or veto, a label model weighs the votes, and a pair has one quality.

By hand: `votes.label_votes`, `model.LabelModel`, `model.lf_summary`. For a pool of shards: `fit.fit` gives an
`fit.Ensemble`, `step.EnsembleStep` applies it, `step.choose` takes the best.
"""
