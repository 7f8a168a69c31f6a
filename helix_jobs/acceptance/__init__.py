"""When an answer counts: the rules that a batch or a line may state, and the judgement of an answer by them."""
