{#
  A table or view made whole. dbt-duckdb makes it beside the old one, renames both and drops the old
  one in four statements, each with a context of all macros; a transaction of one does the same.
#}
{% materialization table, adapter='duckdb' %} {{ return(made_anew('table')) }} {% endmaterialization %}
{% materialization view, adapter='duckdb' %} {{ return(made_anew('view')) }} {% endmaterialization %}

{% macro made_anew(type) %}
  {%- set target = this.incorporate(type=type) -%}
  {%- set made = make_intermediate_relation(target) -%}
  {%- set before = load_cached_relation(this) -%}
  {{ run_hooks(pre_hooks) }}
  {% call statement('main') -%}
    {# the model may read what is there before #}
    {{ create_table_as(false, made, compiled_code) if type == 'table' else create_view_as(made, compiled_code) }}
    {% if before %} drop {{ before.type }} {{ before }}; {% endif %}
    alter {{ type }} {{ made }} rename to {{ adapter.quote(target.identifier) }}
  {%- endcall %}
  {{ run_hooks(post_hooks) }}
  {% do adapter.commit() %}
  {{ return({'relations': [target]}) }}
{% endmacro %}
