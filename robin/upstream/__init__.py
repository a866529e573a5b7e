"""Robin's two servers, as the gateway calls them."""
