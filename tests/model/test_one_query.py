def test_one_query_of_bfloat16_that_sees_all_keys_needs_no_mask() -> None:
    import torch

    from transom.model.attention import Rule, attend, attend_plain

    torch.manual_seed(0)
    query, key, value = (torch.randn(1, n, 2, 16).bfloat16() for n in (1, 5, 5))
    rule = Rule(causal=True)
    with torch.no_grad():
        found, right = attend(query, key, value, rule), attend_plain(query, key, value, rule)
    torch.testing.assert_close(found, right, atol=0.02, rtol=0.02)
