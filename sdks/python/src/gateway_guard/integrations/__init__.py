"""Guards at the places where texts pass in other people's libraries; each module needs its library.

| module | for | extra |
| --- | --- | --- |
| `openai`, `anthropic` | their clients | `openai`, `anthropic` |
| `langchain` | callbacks, documents | `langchain` |
| `llama_index` | nodes and questions | `llama-index` |
| `agents` | guardrails of the OpenAI Agents SDK | `agents` |
| `mcp` | results and definitions of tools | `mcp` |
| `litellm` | a custom guardrail of LiteLLM's proxy | `litellm` |
| `starlette` | FastAPI and every other ASGI application | none |
| `django` | Django's middleware | `django` |
"""
