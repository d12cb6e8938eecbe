"""Retrieval and reasoning only where a question needs them (X-Router).

llm, index    models and passages                    ask        what is asked, and how answers are read
profile       what four pipelines answered and cost  router     what was learned from that
evaluation    how good it is                         answer     the way in
"""
