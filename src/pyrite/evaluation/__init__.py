"""How good a model, or a judge, is: metrics, significance, agreement, and the choice."""
