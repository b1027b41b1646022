"""The contract with clients: protocol definitions and the code generated from them."""
